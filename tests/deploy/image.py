"""An image without a container engine: the steps of a container file, run in a directory.

It differs from a real image: it uses the Python and the libraries of this machine instead of the
base image, puts the absolute paths of the container file into the directory, and has no layers and
no user. `apt-get` steps are not run: the packages must be installed on this machine.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.deploy.dockerfile import Dockerfile, Stage, exec_form, expanded, in_context

ROOT = Path(__file__).parent.parent.parent
IGNORE = ROOT / ".dockerignore"


class Image:
    """A built tree of files, with the command and the environment of its process."""

    def __init__(self, directory: Path, file: Dockerfile, build_arguments: dict[str, str]) -> None:
        self._directory = directory
        self._file = file
        self._build_arguments = build_arguments
        # As in the base image, this is Python with pip, without the packages of the tests.
        self._tools = directory / "tools"
        self._tools.mkdir(parents=True)
        self.path("/var/lib").mkdir(parents=True)
        base = Path(sys._base_executable)  # type: ignore[attr-defined]  # not in the stubs
        (self._tools / "python").symlink_to(base)
        for name in ("sh", "mkdir"):
            (self._tools / name).symlink_to(str(shutil.which(name)))
        self.steps: list[str] = []

    def build(self) -> None:
        kept: list[Path] = []
        for stage in self._file.stages:
            self._keep_only(kept, stage)
            self._run_stage(stage)
            kept = [Path(name) for name in ("/opt/chatrpc",)]

    def path(self, inside: str) -> Path:
        """Return the path on this machine for an absolute path of the image."""
        return self._directory / "root" / inside.lstrip("/")

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the image's process, without the variables of the test."""
        return {
            **{name: self._placed(value) for name, value in self._file.final.environment.items()},
            "PATH": f"{self.path('/opt/chatrpc')}/bin",
        }

    @property
    def entrypoint(self) -> list[str]:
        return [self._placed(word) for word in exec_form(self._file.final.one("ENTRYPOINT").text)]

    @property
    def health_check(self) -> list[str]:
        text = self._file.final.one("HEALTHCHECK").text.partition(" CMD ")[2]
        return [self._placed(word) for word in exec_form(text)]

    def _placed(self, text: str) -> str:
        """Replace the absolute paths of the container file by those on this machine."""
        for inside in ("/opt/chatrpc", "/var/lib/chatrpc", "/src"):
            text = text.replace(inside, str(self.path(inside)))
        return text

    def _keep_only(self, kept: list[Path], stage: Stage) -> None:
        """Check that a stage copies only `kept` from earlier stages, and delete their sources."""
        copies = [copy.words for copy in stage.all("COPY") if copy.text.startswith("--from=")]
        assert [Path(words[1]) for words in copies] == kept
        assert all(words[1] == words[2] for words in copies)
        shutil.rmtree(self.path("/src"), ignore_errors=True)

    def _run_stage(self, stage: Stage) -> None:
        arguments: dict[str, str] = {}
        environment: dict[str, str] = {}
        work = "/"
        for instruction in stage.instructions:
            match instruction.name:
                case "ARG":
                    name = instruction.text.partition("=")[0]
                    arguments |= instruction.pairs
                    if name in self._build_arguments:
                        arguments[name] = self._build_arguments[name]
                case "ENV":
                    environment |= {k: self._placed(v) for k, v in instruction.pairs.items()}
                case "LABEL":
                    expanded(instruction.text, arguments)
                case "WORKDIR":
                    work = instruction.text
                    self.path(work).mkdir(parents=True, exist_ok=True)
                case "COPY" if not instruction.text.startswith("--from="):
                    *sources, target = instruction.words
                    self._copy(sources, self.path(work) / target)
                case "RUN":
                    # The base image has no compiler.
                    more_paths = (
                        "" if stage is self._file.final else ":/usr/local/bin:/usr/bin:/bin"
                    )
                    path = f"{self._tools}{more_paths}"
                    variables = {**environment, **arguments, "PATH": path}
                    self._run(instruction.text, self.path(work), variables)

    def _copy(self, sources: list[str], target: Path) -> None:
        for source in sources:
            files = [p for p in sorted((ROOT / source).rglob("*")) if p.is_file()]
            taken = [
                file
                for file in files or [ROOT / source]
                if in_context(str(file.relative_to(ROOT)), IGNORE)
            ]
            assert taken, f".dockerignore leaves nothing of {source}"
            for file in taken:
                copy = target / file.relative_to(ROOT / source) if files else target / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)

    def _run(self, command: str, work: Path, environment: dict[str, str]) -> None:
        if command.startswith("apt-get update && apt-get install"):
            assert shutil.which("g++"), "the image installs g++; this machine lacks it"
            return
        command = self._placed(command)
        self.steps.append(command)
        here = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k == "HOME"}
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=work,
            env={**here, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}"
