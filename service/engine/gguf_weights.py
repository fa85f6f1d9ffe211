"""Reads the weights of a GGUF file one by one, by the names of a checkpoint's tensors."""

import mmap
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from service.engine.gguf_blocks import FLOATS, GROUPED, BlockWeight, dequantized
from service.errors import ModelLoadError
from service.gguf.index import LINK, IndexedTensor

_CHUNK_VALUES = 2**20  # number of values checked at once
_NOT_FINITE = "has values that are not finite"


class GgufWeights:
    """`service.engine.stored_weights.StoredWeights` of a GGUF file.

    Args:
        path: The checkpoint's directory, which has a link to the file.
        tensors: The index of the directory.
        device: The device of the tensors that `read` returns.

    Raises:
        ModelLoadError: The file cannot be opened.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, IndexedTensor], device: torch.device
    ) -> None:
        self._path = (path / LINK).resolve()
        self._tensors = tensors
        self._device = device
        try:
            with self._path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:  # ValueError: the file is empty
            reason = error.strerror if isinstance(error, OSError) else error
            raise ModelLoadError(f"{self._path} cannot be read: {reason}") from error

    @property
    def names(self) -> set[str]:
        """See `StoredWeights`."""
        return set(self._tensors)

    def close(self) -> None:
        """See `StoredWeights`. Blocks that `read_grouped` returned stay valid."""
        del self._map

    def read(self, name: str) -> Tensor:
        """See `StoredWeights`."""
        tensor = self._tensors[name]
        rows = self._rows(tensor)
        if tensor.type in FLOATS:
            values = rows.view(FLOATS[tensor.type]).view(tensor.shape).clone()
        else:
            try:
                values = dequantized(tensor.type, rows).view(tensor.shape)
            except NotImplementedError:
                reason = f"is stored as {tensor.type}, which is not supported"
                raise self._failure(tensor, reason) from None
        if tensor.addend:
            values = values.float() - tensor.addend
        self._check_finite(tensor, values)
        return values.to(self._device)

    def read_grouped(self, name: str) -> BlockWeight | None:
        """See `StoredWeights`. The blocks are those of the mapped file."""
        tensor = self._tensors[name]
        if tensor.type not in GROUPED:
            return None
        weight = BlockWeight(tensor.type, (self._rows(tensor),))
        if not weight.is_finite():
            raise self._failure(tensor, _NOT_FINITE)
        return weight

    def _rows(self, tensor: IndexedTensor) -> Tensor:
        """Return a tensor's bytes, uint8 [N, bytes of a row], with rows in the checkpoint's order.

        A row of a tensor of one dimension is one value.
        """
        end = tensor.offset + tensor.num_bytes
        if len(self._map) < end:
            raise self._failure(tensor, "is cut off")
        # Earlier tensors leave this process's memory. If one is used again, it is read again.
        self._map.madvise(mmap.MADV_DONTNEED)
        stored = torch.frombuffer(
            self._map, dtype=torch.uint8, count=tensor.num_bytes, offset=tensor.offset
        )
        rows = stored.view(tensor.shape[0], -1)
        if tensor.num_heads is None:
            return rows
        pairs = rows.view(tensor.num_heads, -1, 2, rows.shape[1])
        return pairs.transpose(1, 2).reshape(rows.shape)

    def _check_finite(self, tensor: IndexedTensor, values: Tensor) -> None:
        """Check that no value is NaN or infinite."""
        if not all(bool(part.isfinite().all()) for part in torch.split(values, _CHUNK_VALUES)):
            raise self._failure(tensor, _NOT_FINITE)

    def _failure(self, tensor: IndexedTensor, reason: str) -> ModelLoadError:
        return ModelLoadError(
            f"{self._path} cannot be loaded: the tensor {tensor.stored_name} {reason}."
        )
