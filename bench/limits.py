"""Measures the limits of a machine: reading from memory, and arithmetic in int8 and bfloat16.

This is a separate program, `python -m bench.limits`, since it needs torch. It prints the limits as
JSON. All cores work at once. Each figure is the best of several repetitions, since other work on
the machine can only make it slower.

Bytes are read from a gigabyte, more than any cache holds. The limit of arithmetic is the higher of
two figures: the best instruction for it that operates on vectors, repeated in registers, and
torch's product of large matrices, which uses the matrix units of a CPU that has some.
"""

import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import msgspec
import torch

from bench.results import Limits
from service.engine.native.compiler import Unavailable, find_compiler

_SOURCE = Path(__file__).with_name("limits.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
_READ_BYTES = 2**30
_REPETITIONS = 12
_ROUNDS = 2_000_000
_MATRIX_SIZE = 2048


def measure() -> Limits:
    """Measure all limits. This takes some seconds.

    Raises:
        Unavailable: There is no C++ compiler, or it fails.
    """
    num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as space, ThreadPoolExecutor(num_threads) as pool:
        library = _library(Path(space))
        # ctypes releases the lock of the interpreter during a call, so that the threads run at
        # once.
        on_all = partial(_on_all, pool, num_threads)
        tops = {
            "int8": max(
                on_all(library.multiply_int8), _products(lambda m: torch._int_mm(m, m), torch.int8)
            ),
            "bf16": max(on_all(library.multiply_bf16), _products(lambda m: m @ m, torch.bfloat16)),
        }
        return Limits(
            _read_gb_s(library, pool, num_threads),
            {kind: rate / 1e12 for kind, rate in tops.items()},
        )


def _library(space: Path) -> ctypes.CDLL:
    path = space / "limits.so"
    command = [*find_compiler(), *_FLAGS, str(_SOURCE), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise Unavailable(f"the compiler failed: {done.stderr.strip()[:200]}")
    library = ctypes.CDLL(str(path))
    library.read_memory.restype = ctypes.c_uint64
    library.read_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    for function in (library.multiply_int8, library.multiply_bf16):
        function.restype = ctypes.c_int64
        function.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
    return library


def _read_gb_s(library: ctypes.CDLL, pool: ThreadPoolExecutor, num_threads: int) -> float:
    numbers = torch.ones(_READ_BYTES // 8, dtype=torch.int64)
    parts = numbers.chunk(num_threads)

    def read(part: torch.Tensor) -> int:
        return int(library.read_memory(part.data_ptr(), part.numel())) * 8

    return _best_rate(lambda: sum(pool.map(read, parts))) / 1e9


def _on_all(pool: ThreadPoolExecutor, num_threads: int, multiply: Callable[..., int]) -> float:
    def work(_: int) -> int:
        return multiply(_ROUNDS, ctypes.byref(ctypes.c_float(0.0)))

    return _best_rate(lambda: sum(pool.map(work, range(num_threads))))


def _products(multiply: Callable[[torch.Tensor], object], dtype: torch.dtype) -> float:
    matrix = torch.ones(_MATRIX_SIZE, _MATRIX_SIZE, dtype=dtype)

    def work() -> int:
        multiply(matrix)
        return 2 * _MATRIX_SIZE**3

    return _best_rate(work)


def _best_rate(work: Callable[[], int]) -> float:
    """Return the highest rate of several calls: what `work` returns, by its seconds."""
    rates = []
    for _ in range(_REPETITIONS):
        start_s = time.perf_counter()
        amount = work()
        rates.append(amount / (time.perf_counter() - start_s))
    return max(rates)


if __name__ == "__main__":
    print(msgspec.json.encode(measure()).decode())  # noqa: T201  # the program's result
