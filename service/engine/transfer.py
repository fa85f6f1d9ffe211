"""Copies between the host and the device of a model, with many arrays in one copy.

A copy from pageable memory to a CUDA device waits until the device has finished all earlier work,
and so does every copy to the host. A step has at most one wait if it uses these functions.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Every array starts at a multiple of this number of bytes, as views of 8-byte types require.
_ALIGNMENT = 16


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Return tensors with the values of arrays, by one copy that does not wait for the device.

    On a CPU the tensors share the memory of the arrays.
    """
    if device.type == "cpu" or not arrays:
        return [torch.from_numpy(array) for array in arrays]
    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    starts = list(accumulate(sizes, initial=0))
    # torch uses this memory again only after the copy, even if the tensor is freed before.
    pinned = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=True)
    host = pinned.numpy()
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    copied = pinned.to(device, non_blocking=True)
    return [
        copied[start : start + array.nbytes].view(_dtype(array)).view(array.shape)
        for start, array in zip(starts, arrays, strict=False)
    ]


def to_host(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    """Return the values of tensors of one device, by one copy that waits for the device.

    On a CPU the arrays share the memory of the tensors.
    """
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    copied = torch.cat([tensor.reshape(-1).view(torch.uint8) for tensor in tensors]).cpu().numpy()
    ends = list(accumulate(tensor.nbytes for tensor in tensors))
    return [
        copied[end - tensor.nbytes : end]
        .view(torch.empty(0, dtype=tensor.dtype).numpy().dtype)
        .reshape(tensor.shape)
        for end, tensor in zip(ends, tensors, strict=True)
    ]


def _dtype(array: NDArray[Any]) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
