from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.engine.transfer import to_device, to_host
from tests.support.device import TORCH_DEVICE


def test_arrays_keep_their_values_shapes_and_types() -> None:
    arrays: list[NDArray[Any]] = [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.array([1.5], dtype=np.float32),
        np.empty((0, 4), dtype=np.int64),
        np.arange(20, dtype=np.int32).reshape(4, 5)[:, ::2],  # not contiguous
        np.array([[True], [False]]),
        np.array(7.25),
        np.arange(5, dtype=np.uint8),
    ]
    tensors = to_device(arrays, TORCH_DEVICE)
    assert {tensor.device.type for tensor in tensors} == {TORCH_DEVICE.type}
    for array, tensor, back in zip(arrays, tensors, to_host(tensors), strict=True):
        assert tuple(tensor.shape) == array.shape == back.shape
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)


def test_empty_list_is_not_copied() -> None:
    assert to_device([], TORCH_DEVICE) == []
    assert to_host([]) == []


def test_tensors_that_are_not_contiguous_are_copied() -> None:
    tensor = torch.arange(6, device=TORCH_DEVICE).view(2, 3).t()
    assert to_host([tensor])[0].tolist() == [[0, 3], [1, 4], [2, 5]]
