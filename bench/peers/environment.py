"""The virtual environment of a peer, installed once."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
_NICE = 19

# The same pin as that of our service. With a looser one, pip would fetch the build for CUDA.
TORCH = "torch==2.13.0"


class InstallError(Exception):
    """A peer cannot be installed. The message is one line."""


def root() -> Path:
    """Return the directory of the peers' environments: BENCH_ENVS, or else `.venv-bench`."""
    return Path(os.environ.get("BENCH_ENVS", ".venv-bench")).absolute()


class Environment:
    """The virtual environment `name`. It counts as installed once `recipe` has completed.

    Args:
        directory: The directory that contains it. The default is that of the peers' environments.
    """

    def __init__(self, name: str, pins: Sequence[str], directory: Path | None = None) -> None:
        self.path = (directory or root()).absolute() / name
        self._pins = " ".join(pins)
        self._stamp = self.path / "installed"

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return next((self.path / "lib").glob("python3*/site-packages"))

    def script(self, name: str) -> tuple[str, str]:
        """Return a command of the environment. It still works if the environment is moved."""
        return str(self.python), str(self.path / "bin" / name)

    def environ(self) -> dict[str, str]:
        """Return our environment variables, without our module paths and with the hub offline."""
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        path = f"{self.path / 'bin'}:{kept.get('PATH', '')}"
        return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}

    def install(self, recipe: Callable[["Environment"], None]) -> None:
        """Create the environment, unless it exists with these pins.

        Raises:
            InstallError: The installer failed. The message has the end of its output.
        """
        if self._stamp.is_file() and self._stamp.read_text() == self._pins:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.run([sys.executable, "-m", "venv", str(self.path)])
        recipe(self)
        self._stamp.write_text(self._pins)

    def pip(self, *packages: str, env: Mapping[str, str] | None = None) -> None:
        self.run([str(self.python), *_PIP, "install", *packages], env=env)

    def run(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> str:
        """Run a command of the installation at the lowest priority. Return its output.

        Raises:
            InstallError: The command failed.
        """
        log = self.path / "install.log"
        done = subprocess.run(  # noqa: S603  # only our own commands are run
            ["nice", "-n", str(_NICE), *command],  # noqa: S607
            env={**self.environ(), "HF_HUB_OFFLINE": "0", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{done.stdout}\n")
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines()[-1:] or ["no output"]
            raise InstallError(f"{lines[0][:200]} (all of it: {log})")
        return done.stdout
