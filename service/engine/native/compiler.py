"""Compiles this package's C++ sources into shared libraries, and opens these."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
# -w: GCC 12 warns about the headers of its own intrinsics.
COMMON_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-w")

_COMPILERS = ("c++", "g++", "clang++")
_COMPILE_TIMEOUT_S = 120
_DIGEST_BYTES = 32


class Unavailable(Exception):
    """Native kernels are not available. The message contains the reason."""


def find_compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: `$CXX`, or the first usual name in the PATH.

    Raises:
        NoCompiler: There is no compiler.
        Unavailable: `$CXX` cannot be parsed.
    """
    if chosen := os.environ.get("CXX"):
        try:
            return tuple(shlex.split(chosen))
        except ValueError as error:
            raise Unavailable(f"$CXX is {chosen!r}: {error}") from error
    for name in _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return (path,)
    raise NoCompiler(f"there is no C++ compiler: none of {', '.join(_COMPILERS)}, no $CXX")


class NoCompiler(Unavailable):
    """`$CXX` is not set, and no C++ compiler is in the PATH."""


def version(compiler: tuple[str, ...]) -> str:
    """Return the compiler's version text.

    Raises:
        Unavailable: The compiler cannot be run.
    """
    return _run((*compiler, "--version"))


def target_machine(compiler: tuple[str, ...]) -> str:
    """Return the architecture that the compiler compiles for, such as `x86_64` or `aarch64`.

    Raises:
        Unavailable: The compiler cannot be run.
    """
    return _run((*compiler, "-dumpmachine")).partition("-")[0]


def sources_digest(*parts: str) -> str:
    """Return a hash of the sources and of `parts`, which identifies a compiled library."""
    texts = [part.encode() for part in parts]
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        texts += [source.name.encode(), source.read_bytes()]
    digests = (hashlib.sha256(text).digest() for text in texts)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def compile_library(compiler: tuple[str, ...], flags: tuple[str, ...], space: Path) -> Path:
    """Compile the sources into a library in the directory `space`, and append its digest.

    Returns:
        The path of the library.

    Raises:
        Unavailable: The compiler fails, or the library needs a second OpenMP runtime.
    """
    path = space / "kernels.so"
    objects = {source: path.with_name(source.stem + ".o") for source in SOURCES.glob("*.cpp")}
    with ThreadPoolExecutor() as pool:
        commands = ((*compiler, *flags, "-c", str(s), "-o", str(o)) for s, o in objects.items())
        list(pool.map(_run, commands))
    _run((*compiler, *flags, "-shared", *map(str, objects.values()), "-o", str(path)))
    content = path.read_bytes()
    if b"libomp.so" in content or b"libiomp5.so" in content:
        raise Unavailable(f"{compiler[0]} links a second OpenMP runtime; GCC uses torch's")
    with path.open("ab") as file:  # loaders ignore data after the end of an ELF file
        file.write(hashlib.sha256(content).digest())
    return path


def open_verified(path: Path) -> ctypes.CDLL | None:
    """Open the library at `path` if its digest is right. A damaged library could crash the process.

    Returns:
        None if there is no such file, if it is damaged, or if it cannot be loaded.

    Raises:
        Unavailable: The self-test fails.
    """
    try:
        content = path.read_bytes()
        is_intact = hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
        return open_library(path) if is_intact else None
    except OSError:
        return None  # there is no file, or its file system is mounted noexec


def open_library(path: Path) -> ctypes.CDLL:
    """Open the library at `path` and run its self-test.

    Raises:
        OSError: It cannot be loaded.
        Unavailable: The self-test fails.
    """
    library = ctypes.CDLL(str(path))
    try:
        failed = library.chatrpc_linear_self_test()
    except AttributeError as error:
        raise Unavailable(f"the compiled library has no self-test: {error}") from error
    if failed != 0:
        raise Unavailable(f"the compiled kernels compute wrong results: self-test {failed}")
    return library


def kernels_level(library: ctypes.CDLL) -> str:
    """Return the name of the level (see `levels.py`) that a library was compiled for."""
    function = library.chatrpc_cpu_level
    function.restype = ctypes.c_char_p
    name: bytes = function()
    return name.decode()


def _run(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(  # noqa: S603  # the operator's own compiler
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMPILE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        message = next((line for line in done.stderr.splitlines() if "error" in line), "no error")
        raise Unavailable(f"{command[0]} failed with status {done.returncode}: {message}")
    return done.stdout
