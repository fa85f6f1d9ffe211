"""Print the package versions for images: those of this environment, in which the tests ran.

`make constraints` writes them to deploy/docker/constraints.txt.
"""

import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent.parent
IN_IMAGES = ("service", "gateway", "cli", "otel")


def requirements() -> list[Requirement]:
    """Return the requirements in pyproject.toml of the extras that images contain."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = (project["optional-dependencies"][extra] for extra in IN_IMAGES)
    return [Requirement(line) for lines in (project["dependencies"], *extras) for line in lines]


def installed(wanted: Iterable[Requirement]) -> dict[str, str]:
    """Return the installed versions of the requirements and of all their dependencies, by name."""
    found: dict[str, str] = {}
    queue = [(requirement.name, frozenset(requirement.extras)) for requirement in wanted]
    seen = set()
    while queue:
        name, extras = queue.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        distribution = metadata.distribution(name)
        # Without the local part: torch is 2.13.0 from one index and 2.13.0+cpu from another.
        found[canonicalize_name(name)] = distribution.version.partition("+")[0]
        for line in distribution.requires or ():
            needed = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *extras)]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                queue.append((needed.name, frozenset(needed.extras)))
    return found


if __name__ == "__main__":
    print("# The versions that the tests ran with; written by `make constraints`.")  # noqa: T201
    for name, version in sorted(installed(requirements()).items()):
        print(f"{name}=={version}")  # noqa: T201
