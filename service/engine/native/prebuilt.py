"""Prebuilt kernels for all supported kinds of CPU, as part of a container image.

`python -m service.engine.native.prebuilt` compiles them into this package, on any x86-64 machine
with GCC, even if that machine cannot run them. So an image needs no compiler, and may be built on
another kind of CPU than it runs on. On machines that are not x86-64 the command prints a message,
compiles nothing and exits with 0.
"""

import ctypes
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.engine.native.compiler import (
    COMMON_FLAGS,
    SOURCES,
    Unavailable,
    compile_library,
    find_compiler,
    open_verified,
    sources_digest,
)

NEEDED_CPU_FLAGS = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"})

_DIRECTORY = SOURCES / "prebuilt"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Level:
    """A set of optional CPU instructions for which the sources have separate code."""

    name: str
    flags: tuple[str, ...]  # options of the compiler
    cpu_flags: frozenset[str]  # names in /proc/cpuinfo

    @property
    def file_name(self) -> str:
        return f"{self.name}-{sources_digest(repr((COMMON_FLAGS, self.flags)))}.so"


_VNNI = ("-march=x86-64-v4", "-mavx512vnni", "-mtune=icelake-server")
_BF16 = (*_VNNI, "-mavx512bf16")
_AMX = (*_BF16, "-mamx-tile", "-mamx-int8", "-mamx-bf16")
_V4_CPU_FLAGS = NEEDED_CPU_FLAGS | {"avx512cd", "avx2", "bmi1", "bmi2", "fma", "f16c", "movbe"}
_BF16_CPU_FLAGS = _V4_CPU_FLAGS | {"avx512_bf16"}
_LEVELS = (  # the most capable first
    _Level("amx", _AMX, _BF16_CPU_FLAGS | {"amx_tile", "amx_int8", "amx_bf16"}),
    _Level("bf16", _BF16, _BF16_CPU_FLAGS),
    _Level("vnni", _VNNI, _V4_CPU_FLAGS),
)


def open_prebuilt(cpu_flags: set[str], directory: Path = _DIRECTORY) -> ctypes.CDLL | None:
    """Open the fastest library in `directory` that a CPU with these flags can run.

    Returns:
        None if there is no such library.

    Raises:
        Unavailable: The self-test fails.
    """
    for level in _LEVELS:
        if cpu_flags >= level.cpu_flags:
            library = open_verified(directory / level.file_name)
            if library is not None:
                log.info("native_kernels_prebuilt", kernels=level.name)
                return library
    return None


def compile_all(directory: Path = _DIRECTORY) -> list[Path]:
    """Compile a library for each level into `directory`.

    Returns:
        The paths of the libraries.

    Raises:
        Unavailable: There is no compiler, or it fails.
        OSError: The directory cannot be written to.
    """
    compiler = find_compiler()
    directory.mkdir(parents=True, exist_ok=True)
    made = []
    for level in _LEVELS:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
            path = compile_library(compiler, (*COMMON_FLAGS, *level.flags), Path(space))
            made.append(path.replace(directory / level.file_name))
    return made


def main() -> int:
    """Run the command. Returns its exit code."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        print(f"no kernels for {platform.machine()}: only x86-64 is supported")  # noqa: T201
        return 0
    try:
        made = compile_all()
    except (Unavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # this module is a command
        return 1
    for path in made:
        print(path)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
