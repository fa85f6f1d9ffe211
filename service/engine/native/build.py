"""Compiles the kernels of this package into a shared library, once per machine, and loads it.

The sources do not include torch's headers. So compilation takes seconds, and one library works with
every version of Python and torch. The library has threads of its own, as many as torch's OpenMP
runtime has: torch is imported first, so `libgomp.so.1` is already in the process.
"""

import ctypes
import tempfile
from contextlib import suppress
from pathlib import Path

import structlog
import torch  # must come before the library is loaded, which uses torch's OpenMP runtime

from service.engine.native.compiler import (
    COMMON_FLAGS,
    NoCompiler,
    Unavailable,
    compile_library,
    find_compiler,
    open_library,
    open_verified,
    sources_digest,
    version,
)
from service.engine.native.prebuilt import NEEDED_CPU_FLAGS, open_prebuilt

_CPUINFO = Path("/proc/cpuinfo")
_FLAGS = (*COMMON_FLAGS, "-march=native")

log = structlog.get_logger(__name__)


def load_library(cache_dir: Path) -> ctypes.CDLL | None:
    """Load the kernels. Compile them into `cache_dir`/native if they are not there.

    If there is no compiler, the prebuilt kernels of this installation are loaded. Several processes
    may call this at once.

    Returns:
        The library; None, with a log event, if there are neither a compiler nor prebuilt kernels,
        if the CPU lacks AVX-512 VNNI, or if the self-test fails.
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
    """Compile the kernels for a later `load_library`, if they are not in the cache.

    Errors are ignored here: `load_library` reports them.

    Args:
        may_use_gpu: If True, nothing is compiled if torch finds a GPU.
    """
    if may_use_gpu and torch.cuda.is_available():
        return
    with suppress(Unavailable, OSError):
        _load(cache_dir / "native", _cpu(), find_compiler())


def _load(cache_dir: Path, cpu: dict[str, str], compiler: tuple[str, ...]) -> ctypes.CDLL:
    key = sources_digest("\n".join(cpu.values()), repr((compiler, _FLAGS)), version(compiler))
    name = key + ".so"
    if (library := open_verified(cache_dir / name)) is not None:
        return library
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _built(compiler, cache_dir, cache_dir / name)
    except OSError as error:
        log.info("native_kernels_not_cached", directory=str(cache_dir), reason=str(error))
        return _built(compiler, Path(tempfile.gettempdir()), None)


def _cpu() -> dict[str, str]:
    """Return the fields of cpuinfo on which `-march=native` depends."""
    lines = _CPUINFO.read_text().split("\n\n", maxsplit=1)[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    if not set(fields.get("flags", "").split()) >= NEEDED_CPU_FLAGS:
        raise Unavailable("the CPU lacks AVX-512 VNNI")
    return {name: fields.get(name, "") for name in ("vendor_id", "cpu family", "model", "flags")}


def _built(compiler: tuple[str, ...], directory: Path, target: Path | None) -> ctypes.CDLL:
    """Compile and load the library in a temporary directory inside `directory`, then move it to
    `target`."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
        path = compile_library(compiler, _FLAGS, Path(space))
        library = open_library(path)
        if target is not None:
            path.replace(target)
        return library
