"""The compiled library of the simulated CUDA device.

It is compiled once per version of its source, of torch and of the compiler. Environments share it:
it names torch's libraries without their folder.
"""

import ctypes
import hashlib
import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from service.cache import default_cache_dir
from service.engine.native.compiler import find_compiler, version

_SOURCE = Path(__file__).with_name("device.cpp")
_FLAGS = ("-O1", "-std=c++20", "-fPIC", "-shared", "-w")
_TORCH_LIBRARIES = ("c10", "torch_cpu")


def build() -> Path:
    """Return the path of the library. It is compiled first if it is not in the cache directory.

    Several processes may call this at once.

    Raises:
        NoCompiler: There is no C++ compiler.
        Unavailable: The compiler cannot be run.
        subprocess.CalledProcessError: The compiler fails. Its messages are on stderr.
    """
    compiler = find_compiler()
    version_of_torch = distribution("torch").version
    options = repr((_FLAGS, _TORCH_LIBRARIES))
    parts = (_SOURCE.read_text(), options, version_of_torch, version(compiler))
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + ".so"
    path = default_cache_dir() / "simulated_cuda" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        _compile(compiler, unfinished)
        unfinished.replace(path)
    return path


def load() -> ctypes.CDLL:
    """Load the library into this process. It must be the first that needs torch's libraries.

    Raises:
        RuntimeError: torch has been imported.
    """
    # torch asks for the functions of a CUDA device when it is imported, and never again.
    if "torch" in sys.modules:
        raise RuntimeError("the simulated CUDA device must be installed before torch is imported")
    path = build()
    for name in _TORCH_LIBRARIES:
        ctypes.CDLL(str(_torch() / "lib" / f"lib{name}.so"))
    library = ctypes.CDLL(str(path))
    library.simulated_cuda_operators.restype = ctypes.c_char_p
    library.simulated_cuda_limit_memory.argtypes = [ctypes.c_int64]
    library.simulated_cuda_lose_after.argtypes = [ctypes.c_int64]
    library.simulated_cuda_install()
    return library


def _compile(compiler: tuple[str, ...], path: Path) -> None:
    include = _torch() / "include"
    headers = (f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}")
    linked = (f"-L{_torch() / 'lib'}", *(f"-l{name}" for name in _TORCH_LIBRARIES))
    subprocess.run(
        (*compiler, *_FLAGS, *headers, str(_SOURCE), *linked, "-o", str(path)), check=True
    )


def _torch() -> Path:
    """Return the folder of torch. It is not imported."""
    return Path(str(distribution("torch").locate_file("torch")))
