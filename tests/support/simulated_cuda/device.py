"""The simulated CUDA device: it makes `cuda` a device of a torch that was built without CUDA.

    with counting() as counts:
        core.step()
    assert counts.waits == 1

Tensors on it are real tensors of the device `cuda:0`, and operators compute on them as on a CPU.
It simulates that operators reject tensors of two devices, which calls wait, the limit of the
memory, and the loss of the device. A copy from or to pinned memory with `non_blocking` is complete
only after the next wait. Streams, the numerics of CUDA, and CUDA graphs are not simulated.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from tests.support.simulated_cuda.library import load

TOTAL_MEMORY = 80 * 2**30

_NUM_COUNTS = 6

_library: ctypes.CDLL


@dataclass
class Counts:
    """Numbers of events on the device.

    Attributes:
        kernels: Kernels, without copies between the host and the device.
        waits: Calls that wait until the device has finished all earlier work. These are reads of
            values, operators whose result has a size that depends on values, synchronizations, and
            copies between the device and memory that is not pinned.
        operators: Number of calls of each operator, such as `aten::mm`.
    """

    kernels: int = 0
    waits: int = 0
    copies_to_device: int = 0
    copies_to_host: int = 0
    operators: Counter[str] = field(default_factory=Counter)

    @property
    def copies(self) -> int:
        return self.copies_to_device + self.copies_to_host


def install() -> None:
    """Add the device to torch.

    Raises:
        RuntimeError: torch has been imported.
    """
    global _library  # noqa: PLW0603  # a process has one torch
    _library = load()
    import torch  # noqa: PLC0415  # it must be imported after the library is loaded

    for name, value in _replacements().items():
        setattr(torch.cuda, name, value)


@contextmanager
def counting() -> Iterator[Counts]:
    """Count the events in the context. The numbers are set at its end."""
    counts, before = Counts(), current_counts()
    yield counts
    after = current_counts()
    counts.kernels = after.kernels - before.kernels
    counts.waits = after.waits - before.waits
    counts.copies_to_device = after.copies_to_device - before.copies_to_device
    counts.copies_to_host = after.copies_to_host - before.copies_to_host
    counts.operators = after.operators - before.operators


def current_counts() -> Counts:
    """Return the numbers of events since the device was installed."""
    kernels, waits, to_device, to_host, _, _ = _numbers()
    lines = (_library.simulated_cuda_operators() or b"").decode().splitlines()
    operators = Counter({name: int(n) for name, _, n in (s.rpartition(" ") for s in lines)})
    return Counts(kernels, waits, to_device, to_host, operators)


@contextmanager
def memory_limit(num_more_bytes: int) -> Iterator[None]:
    """Limit the memory, in the context, to what is allocated now and `num_more_bytes`.

    Allocating more raises `torch.OutOfMemoryError`.
    """
    _library.simulated_cuda_limit_memory(allocated_bytes() + num_more_bytes)
    try:
        yield
    finally:
        _library.simulated_cuda_limit_memory(0)


@contextmanager
def device_loss(num_kernels: int) -> Iterator[None]:
    """Lose the device, in the context, after `num_kernels` more kernels and copies.

    All later ones raise `torch.AcceleratorError`.
    """
    _library.simulated_cuda_lose_after(num_kernels)
    try:
        yield
    finally:
        _library.simulated_cuda_lose_after(-1)


def allocated_bytes() -> int:
    return _numbers()[4]


def _numbers() -> list[int]:
    numbers = (ctypes.c_int64 * _NUM_COUNTS)()
    _library.simulated_cuda_counts(numbers)
    return list(numbers)


class _Stream:
    """The only stream, in place of `torch.cuda.Stream`."""

    def synchronize(self) -> None:
        _library.simulated_cuda_synchronize()


class _Event:
    """Replaces `torch.cuda.Event`."""

    def record(self, stream: object = None) -> None: ...

    def synchronize(self) -> None:
        _library.simulated_cuda_synchronize()


def _replacements() -> dict[str, Any]:
    """Return replacements of the functions of `torch.cuda` that call the driver, by name."""
    properties = SimpleNamespace(
        name="Simulated CUDA device", major=9, minor=0, total_memory=TOTAL_MEMORY
    )
    return {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "manual_seed_all": lambda _seed: None,
        "is_bf16_supported": lambda including_emulation=True: True,
        "get_device_capability": lambda _device=None: (properties.major, properties.minor),
        "get_device_name": lambda _device=None: properties.name,
        "get_device_properties": lambda _device=None: properties,
        "synchronize": lambda _device=None: _library.simulated_cuda_synchronize(),
        "current_stream": lambda _device=None: _Stream(),
        "Event": _Event,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device=None: (TOTAL_MEMORY - allocated_bytes(), TOTAL_MEMORY),
        "memory_allocated": lambda _device=None: allocated_bytes(),
        "memory_reserved": lambda _device=None: allocated_bytes(),
        "max_memory_allocated": lambda _device=None: _numbers()[5],
        "reset_peak_memory_stats": lambda _device=None: _library.simulated_cuda_reset_peak(),
    }
