"""The kernels of this package as a shared library, compiled once per machine, and loaded.

The sources know nothing of torch, so a system C++ compiler takes seconds, and the library serves
every version of Python and torch. It asks torch's OpenMP runtime how many threads to use, and has
threads of its own: the loader finds `libgomp.so.1` already in the process, since torch is imported
first.
"""

import ctypes
import tempfile
from contextlib import suppress
from pathlib import Path

import structlog
import torch  # its OpenMP runtime has to be there before the library asks for one

from service.engine.native.compiler import (
    COMMON_FLAGS,
    NoCompiler,
    Unavailable,
    compile_library,
    find_compiler,
    open_library,
    open_whole,
    sources_digest,
    version,
)
from service.engine.native.prebuilt import NEEDED_CPU_FLAGS, open_prebuilt

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = (*COMMON_FLAGS, "-march=native")

log = structlog.get_logger(__name__)


def load_library(cache_dir: Path) -> ctypes.CDLL | None:
    """The kernels, compiled into `cache_dir`/native unless they are there; None without them.

    Where there is no compiler those that were compiled beforehand serve, if this installation
    brings any. Without either, on a CPU that lacks AVX-512 VNNI, or where the result does not
    compute what it should, one line in the log says so. Several processes may do this at once.
    """
    try:
        cpu = _cpu()
        try:
            return _load(cache_dir / "native", cpu, find_compiler())
        except NoCompiler:
            if (library := open_prebuilt(set(cpu["flags"].split()))) is not None:
                return library
            raise
    except (Unavailable, OSError) as error:
        log.warning("native_kernels_unavailable", reason=str(error), effect="slower steps")
        return None


def compile_kernels(cache_dir: Path, *, may_use_gpu: bool = False) -> None:
    """Compile them for a `load_library` to come, unless they are there.

    With `may_use_gpu`, nothing is compiled where torch finds a GPU.

    Of what goes wrong nothing is said here: `load_library` meets it again.
    """
    if may_use_gpu and torch.cuda.is_available():
        return
    with suppress(Unavailable, OSError):
        _load(cache_dir / "native", _cpu(), find_compiler())


def _load(cache_dir: Path, cpu: dict[str, str], compiler: tuple[str, ...]) -> ctypes.CDLL:
    key = sources_digest("\n".join(cpu.values()), repr((compiler, _FLAGS)), version(compiler))
    name = key + ".so"
    if (library := open_whole(cache_dir / name)) is not None:
        return library
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _built(compiler, cache_dir, cache_dir / name)
    except OSError as error:
        log.info("native_kernels_not_cached", directory=str(cache_dir), reason=str(error))
        return _built(compiler, Path(tempfile.gettempdir()), None)


def _cpu() -> dict[str, str]:
    """The fields of cpuinfo that `-march=native` goes by."""
    lines = _CPUINFO.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    if not set(fields.get("flags", "").split()) >= NEEDED_CPU_FLAGS:
        raise Unavailable("the CPU lacks AVX-512 VNNI")
    return {name: fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "flags")}


def _built(compiler: tuple[str, ...], directory: Path, target: Path | None) -> ctypes.CDLL:
    """Compile and load in a new directory inside `directory`; what works moves to `target`."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
        path = compile_library(compiler, _FLAGS, Path(space))
        library = open_library(path)
        if target is not None:
            path.replace(target)
        return library
