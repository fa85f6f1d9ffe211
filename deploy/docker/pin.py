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
IN_IMAGES = (
    *("service", "text", "local", "upstream", "vllm-protocol"),
    *("gateway", "cli", "otel"),
)


def requirements() -> list[Requirement]:
    """Return the requirements in pyproject.toml of the extras that images contain.

    The image with vLLM is not among them: no environment can contain it and the extra `local`.
    """
    return [requirement for extra in ("", *IN_IMAGES) for requirement in extra_requirements(extra)]


def extra_requirements(extra: str) -> list[Requirement]:
    """Return the requirements in pyproject.toml of one extra, without those of extras it names.

    "" is the project without extras.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    requirements = map(Requirement, lines)
    return [requirement for requirement in requirements if requirement.name != project["name"]]


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
