"""Compiles the kernels of this package into a shared library, once per machine, and loads it.

The sources know nothing of torch, so a system C++ compiler takes seconds, and the library serves
every version of Python and torch. It shares torch's OpenMP runtime and so its pool of threads: the
loader finds `libgomp.so.1` already in the process, since torch is imported first.
"""

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import structlog
import torch  # noqa: F401  # its OpenMP runtime has to be there before the library asks for one

_SOURCES = Path(__file__).parent
_CPUINFO = Path("/proc/cpuinfo")
_COMPILERS = ("c++", "g++", "clang++")
# -w: GCC 12 warns of its own intrinsics' headers.
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-w")
_NEEDED_CPU_FLAGS = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
_COMPILE_TIMEOUT_S = 120
_DIGEST_BYTES = 32

log = structlog.get_logger(__name__)


class _Unavailable(Exception):
    """There are no kernels on this machine; the message says why."""


def load_library(cache_dir: Path) -> ctypes.CDLL | None:
    """The kernels, compiled into `cache_dir`/native unless they are there; None without them.

    Without a compiler, on a CPU that lacks AVX-512 VNNI, or where the result does not compute what
    it should, one line in the log says so. Several processes may do this at once.
    """
    try:
        return _load(cache_dir / "native")
    except (_Unavailable, OSError) as error:
        log.warning("native_kernels_unavailable", reason=str(error), effect="slower steps")
        return None


def compile_kernels(cache_dir: Path) -> None:
    """Compile them for a `load_library` to come, unless they are there.

    Of what goes wrong nothing is said here: `load_library` meets it again.
    """
    with suppress(_Unavailable, OSError):
        _load(cache_dir / "native")


def _load(cache_dir: Path) -> ctypes.CDLL:
    cpu = _cpu()
    compiler = _compiler()
    name = _key(cpu, compiler) + ".so"
    if (library := _cached(cache_dir / name)) is not None:
        return library
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _built(compiler, cache_dir, cache_dir / name)
    except OSError as error:
        log.info("native_kernels_not_cached", directory=str(cache_dir), reason=str(error))
        return _built(compiler, Path(tempfile.gettempdir()), None)


def _cpu() -> str:
    """The lines of cpuinfo that `-march=native` goes by."""
    lines = _CPUINFO.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    if not set(fields.get("flags", "").split()) >= _NEEDED_CPU_FLAGS:
        raise _Unavailable("the CPU lacks AVX-512 VNNI")
    return "\n".join(fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "flags"))


def _compiler() -> tuple[str, ...]:
    if chosen := os.environ.get("CXX"):
        try:
            return tuple(shlex.split(chosen))
        except ValueError as error:
            raise _Unavailable(f"$CXX is {chosen!r}: {error}") from error
    for name in _COMPILERS:
        if (path := shutil.which(name)) is not None:
            return (path,)
    raise _Unavailable(f"there is no C++ compiler: none of {', '.join(_COMPILERS)}, no $CXX")


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
        raise _Unavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no error")
        raise _Unavailable(f"{command[0]} failed with status {done.returncode}: {said}")
    return done.stdout


def _key(cpu: str, compiler: tuple[str, ...]) -> str:
    version = _run((*compiler, "--version"))
    parts = [text.encode() for text in (cpu, repr((compiler, _FLAGS)), version)]
    for source in sorted((*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h"))):
        parts += [source.name.encode(), source.read_bytes()]
    digests = (hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(b"".join(digests)).hexdigest()[:32]


def _cached(path: Path) -> ctypes.CDLL | None:
    """The library at `path` if it is whole: to map a damaged one could end the process."""
    try:
        content = path.read_bytes()
        is_whole = hashlib.sha256(content[:-_DIGEST_BYTES]).digest() == content[-_DIGEST_BYTES:]
        return _opened(path) if is_whole else None
    except OSError:
        return None  # it is not there, or lies where nothing may be executed


def _built(compiler: tuple[str, ...], directory: Path, target: Path | None) -> ctypes.CDLL:
    """Compile and load in a new directory inside `directory`; what works moves to `target`."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
        path = Path(space) / "kernels.so"
        objects = {source: path.with_name(source.stem + ".o") for source in _SOURCES.glob("*.cpp")}
        with ThreadPoolExecutor() as pool:
            commands = (
                (*compiler, *_FLAGS, "-c", str(s), "-o", str(o)) for s, o in objects.items()
            )
            list(pool.map(_run, commands))
        _run((*compiler, *_FLAGS, "-shared", *map(str, objects.values()), "-o", str(path)))
        content = path.read_bytes()
        if b"libomp.so" in content or b"libiomp5.so" in content:
            raise _Unavailable(f"{compiler[0]} brings a second OpenMP runtime; GCC shares torch's")
        with path.open("ab") as file:  # after an ELF file's end, where no loader looks
            file.write(hashlib.sha256(content).digest())
        library = _opened(path)
        if target is not None:
            path.replace(target)
        return library


def _opened(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    try:
        failed = library.chatrpc_linear_self_test()
    except AttributeError as error:
        raise _Unavailable(f"the compiler made something else: {error}") from error
    if failed != 0:
        raise _Unavailable(f"the compiled kernels compute something else: self-test {failed}")
    return library
