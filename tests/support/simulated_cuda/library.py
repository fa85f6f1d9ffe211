"""The compiled library of the simulated CUDA device.

It is compiled once per version of its source, of torch and of the compiler.
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


def build() -> Path:
    """Return the path of the library. It is compiled first if it is not in the cache directory.

    Several processes may call this at once.

    Raises:
        NoCompiler: There is no C++ compiler.
        Unavailable: The compiler cannot be run.
        subprocess.CalledProcessError: The compiler fails. Its messages are on stderr.
    """
    torch, compiler = distribution("torch"), find_compiler()
    parts = (_SOURCE.read_text(), repr(_FLAGS), torch.version, version(compiler))
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32] + ".so"
    path = default_cache_dir() / "simulated_cuda" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        _compile(compiler, Path(str(torch.locate_file("torch"))), unfinished)
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
    library = ctypes.CDLL(str(build()))
    library.simulated_cuda_operators.restype = ctypes.c_char_p
    library.simulated_cuda_limit_memory.argtypes = [ctypes.c_int64]
    library.simulated_cuda_lose_after.argtypes = [ctypes.c_int64]
    library.simulated_cuda_install()
    return library


def _compile(compiler: tuple[str, ...], torch: Path, path: Path) -> None:
    include, libraries = torch / "include", torch / "lib"
    headers = (f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}")
    linked = (f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu")
    subprocess.run(
        (*compiler, *_FLAGS, *headers, str(_SOURCE), *linked, "-o", str(path)), check=True
    )
