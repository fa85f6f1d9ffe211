"""Prebuilt kernels for all levels of an architecture, as part of a container image or a wheel.

`python -m service.engine.native.prebuilt` compiles them into this package, even if the CPU of this
machine cannot run them. So an image or a wheel needs no compiler, and may be built on another kind
of CPU than it runs on. A cross compiler in `$CXX` compiles the levels of its architecture. For an
architecture that has no kernels the command prints a message, compiles nothing and exits with 0.

This module imports nothing outside the standard library: the build of the wheel uses it too.
"""

import ctypes
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from service.engine.native.compiler import (
    COMMON_FLAGS,
    SOURCES,
    Unavailable,
    compile_library,
    find_compiler,
    open_verified,
    sources_digest,
    target_machine,
)
from service.engine.native.levels import LEVELS, Level

DIRECTORY = SOURCES / "prebuilt"


def file_name(level: Level) -> str:
    """Return the name of a level's library, which contains a hash of its sources and options."""
    return f"{level.name}-{sources_digest(repr((COMMON_FLAGS, level.compiler_flags)))}.so"


def open_prebuilt(
    levels: Iterable[Level], directory: Path = DIRECTORY
) -> tuple[ctypes.CDLL, Level] | None:
    """Open the first library of `levels` that is in `directory`.

    Returns:
        The library and its level; None if there is none, or if none can be loaded.

    Raises:
        Unavailable: The self-test fails.
    """
    for level in levels:
        if (library := open_verified(directory / file_name(level))) is not None:
            return library, level
    return None


def compile_all(directory: Path = DIRECTORY, names: Iterable[str] | None = None) -> list[Path]:
    """Compile the libraries of the compiler's architecture into `directory`.

    Args:
        names: The levels to compile; None means all.

    Returns:
        The paths of the libraries; an empty list if the architecture has no kernels.

    Raises:
        Unavailable: There is no compiler, or it fails.
        OSError: The directory cannot be written to.
    """
    compiler = find_compiler()
    machine = target_machine(compiler)
    directory.mkdir(parents=True, exist_ok=True)
    chosen = None if names is None else set(names)
    made = []
    for level in LEVELS:
        if level.machine != machine or (chosen is not None and level.name not in chosen):
            continue
        with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
            path = compile_library(compiler, (*COMMON_FLAGS, *level.compiler_flags), Path(space))
            made.append(path.replace(directory / file_name(level)))
    return made


def main() -> int:
    """Run the command. Returns its exit code."""
    try:
        made = compile_all()
    except (Unavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # this module is a command
        return 1
    for path in made:
        print(path)  # noqa: T201
    if not made:
        print("this architecture has no kernels: they exist for x86_64 and aarch64")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
