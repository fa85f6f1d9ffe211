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
from service.engine.native.levels import LEVELS, Cpu, Level, missing_flags, read_cpu
from service.engine.native.prebuilt import open_prebuilt

log = structlog.get_logger(__name__)


def load_library(cache_dir: Path, cpu_level: str = "auto") -> ctypes.CDLL | None:
    """Load the kernels. Compile them into `cache_dir`/native if they are not there.

    If there is no compiler, the prebuilt kernels of this installation are loaded. Several processes
    may call this at once.

    Args:
        cpu_level: The name of a level (see `levels.py`); `auto` for all instructions that this CPU
            has; `none` for no kernels.

    Returns:
        The library; None, with a log event, if there are neither a compiler nor prebuilt kernels,
        if the CPU has no level, or if the self-test fails.

    Raises:
        Unavailable: The CPU cannot run the level that `cpu_level` names.
    """
    if cpu_level == "none":
        return None
    if cpu_level != "auto":
        check_cpu_level(cpu_level)
    try:
        cpu = read_cpu()
        levels = _candidates(cpu, cpu_level)
        try:
            return _load(cache_dir / "native", cpu, _flags(levels[0], cpu_level), find_compiler())
        except NoCompiler:
            if (prebuilt := open_prebuilt(levels)) is not None:
                library, level = prebuilt
                log.info("native_kernels_prebuilt", kernels=level.name)
                return library
            raise
    except (Unavailable, OSError) as error:
        log.warning("native_kernels_unavailable", reason=str(error), effect="slower steps")
        return None


def check_cpu_level(name: str) -> None:
    """Check that this CPU can run a level.

    Raises:
        Unavailable: It cannot. The message contains what it lacks.
    """
    (level,) = (each for each in LEVELS if each.name == name)
    try:
        missing = missing_flags(level, read_cpu().flags)
    except OSError as error:
        raise Unavailable(str(error)) from error
    if missing:
        raise Unavailable(f"this CPU cannot run the level {name}: it lacks {missing}")


def compile_kernels(cache_dir: Path, cpu_level: str = "auto", *, may_use_gpu: bool = False) -> None:
    """Compile the kernels for a later `load_library`, if they are not in the cache.

    Errors are ignored here: `load_library` reports them.

    Args:
        cpu_level: See `load_library`.
        may_use_gpu: If True, nothing is compiled if torch finds a GPU.
    """
    if cpu_level == "none" or (may_use_gpu and torch.cuda.is_available()):
        return
    with suppress(Unavailable, OSError):
        cpu = read_cpu()
        level = _candidates(cpu, cpu_level)[0]
        _load(cache_dir / "native", cpu, _flags(level, cpu_level), find_compiler())


def _candidates(cpu: Cpu, cpu_level: str) -> list[Level]:
    """Return the levels to use on a CPU, the most capable first."""
    levels = [each for each in cpu.levels() if cpu_level in {"auto", each.name}]
    if not levels:
        raise Unavailable("the CPU has neither AVX2 (with FMA and F16C) nor NEON with dot products")
    return levels


def _flags(level: Level, cpu_level: str) -> tuple[str, ...]:
    if cpu_level != "auto":
        return (*COMMON_FLAGS, *level.compiler_flags)
    native = "-march=native" if level.machine == "x86_64" else "-mcpu=native"
    return (*COMMON_FLAGS, native)


def _load(
    cache_dir: Path, cpu: Cpu, flags: tuple[str, ...], compiler: tuple[str, ...]
) -> ctypes.CDLL:
    key = sources_digest(cpu.identity, repr((compiler, flags)), version(compiler))
    name = key + ".so"
    if (library := open_verified(cache_dir / name)) is not None:
        return library
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        return _built(compiler, flags, cache_dir, cache_dir / name)
    except OSError as error:
        log.info("native_kernels_not_cached", directory=str(cache_dir), reason=str(error))
        return _built(compiler, flags, Path(tempfile.gettempdir()), None)


def _built(
    compiler: tuple[str, ...], flags: tuple[str, ...], directory: Path, target: Path | None
) -> ctypes.CDLL:
    """Compile and load the library in a temporary directory inside `directory`, then move it to
    `target`."""
    with tempfile.TemporaryDirectory(prefix=".build-", dir=directory) as space:
        path = compile_library(compiler, flags, Path(space))
        library = open_library(path)
        if target is not None:
            path.replace(target)
        return library
