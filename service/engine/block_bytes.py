"""The content of blocks of a KV cache as bytes, to move it out of the cache and back."""

from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.transfer import to_device


class BlockBytes:
    """Reads and writes whole blocks of a KV cache of any layout, type and device.

    Args:
        tensors: The cache as tensors, each with the blocks as its first dimension: see
            `service.engine.model_runner.Model.block_tensors`.

    Attributes:
        num_bytes: Size of a block in bytes.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._device = tensors[0].device
        self._sizes = [prod(t.shape[1:]) * t.dtype.itemsize for t in tensors]
        self.num_bytes = sum(self._sizes)

    @torch.inference_mode()
    def read(self, block_id: int) -> NDArray[np.uint8]:
        """Return a copy of a block: its part of each tensor, in order. [num_bytes], uint8."""
        parts = [t[block_id].reshape(-1).view(torch.uint8) for t in self._tensors]
        joined: NDArray[np.uint8] = torch.cat(parts).cpu().numpy()
        return joined

    @torch.inference_mode()
    def write(self, block_id: int, content: NDArray[np.uint8]) -> None:
        """Replace a block by the result of an earlier `read`.

        Args:
            content: [num_bytes], uint8.
        """
        [copied] = to_device([content], self._device)
        for tensor, part in zip(self._tensors, torch.split(copied, self._sizes), strict=True):
            block = tensor[block_id]
            block.copy_(part.view(tensor.dtype).view(block.shape))
