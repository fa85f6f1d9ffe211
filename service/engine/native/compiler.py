"""The machine's C++ compiler, and the shared libraries that it makes of this package's sources."""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent
# -w: GCC 12 warns of its own intrinsics' headers.
COMMON_FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-fPIC", "-w")

_COMPILERS = ("c++", "g++", "clang++")
_COMPILE_TIMEOUT_S = 120
_DIGEST_BYTES = 32


class Unavailable(Exception):
    """There are no kernels on this machine; the message says why."""


def find_compiler() -> tuple[str, ...]:
    """`$CXX`, or the first of the usual names.

    Raises:
        Unavailable
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
    """Nobody has asked for a compiler, and there is none."""


def version(compiler: tuple[str, ...]) -> str:
    return _run((*compiler, "--version"))


def sources_digest(*parts: str) -> str:
    """What tells a library made of these sources, and of what `parts` say, from any other."""
    texts = [part.encode() for part in parts]
    for source in sorted((*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"))):
        texts += [source.name.encode(), source.read_bytes()]
    digests = (hashlib.sha256(text).digest() for text in texts)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def compile_library(compiler: tuple[str, ...], flags: tuple[str, ...], space: Path) -> Path:
    """The sources as a library in the directory `space`, its digest appended.

    Raises:
        Unavailable: the compiler fails, or the library would not share torch's threads.
    """
    path = space / "kernels.so"
    objects = {source: path.with_name(source.stem + ".o") for source in SOURCES.glob("*.cpp")}
    with ThreadPoolExecutor() as pool:
        commands = ((*compiler, *flags, "-c", str(s), "-o", str(o)) for s, o in objects.items())
        list(pool.map(_run, commands))
    _run((*compiler, *flags, "-shared", *map(str, objects.values()), "-o", str(path)))
    content = path.read_bytes()
    if b"libomp.so" in content or b"libiomp5.so" in content:
        raise Unavailable(f"{compiler[0]} brings a second OpenMP runtime; GCC shares torch's")
    with path.open("ab") as file:  # after an ELF file's end, where no loader looks
        file.write(hashlib.sha256(content).digest())
    return path


def open_whole(path: Path) -> ctypes.CDLL | None:
    """The library at `path` if it is whole: to map a damaged one could end the process.

    Raises:
        Unavailable: it computes something else.
    """
    try:
        content = path.read_bytes()
        is_whole = hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
        return open_library(path) if is_whole else None
    except OSError:
        return None  # it is not there, or lies where nothing may be executed


def open_library(path: Path) -> ctypes.CDLL:
    """The library at `path`, its self-test passed.

    Raises:
        OSError: it cannot be loaded.
        Unavailable: it computes something else.
    """
    library = ctypes.CDLL(str(path))
    try:
        failed = library.chatrpc_linear_self_test()
    except AttributeError as error:
        raise Unavailable(f"the compiler made something else: {error}") from error
    if failed != 0:
        raise Unavailable(f"the compiled kernels compute something else: self-test {failed}")
    return library


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
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no error")
        raise Unavailable(f"{command[0]} failed with status {done.returncode}: {said}")
    return done.stdout
