"""An open GGUF file, from which tensors are read a few rows at a time."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from service.errors import ModelLoadError
from service.gguf.header import Header, TensorInfo, read_header

Values = npt.NDArray[np.float32]

_FLOATS = {
    GGMLQuantizationType.F32: "<f4",
    GGMLQuantizationType.F16: "<f2",
}


class GgufFile:
    """The header of a GGUF file, and access to the values of its tensors.

    The file is not mapped, because pages of a mapped file would count as used memory.
    """

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self.header = header

    def rows(self, tensor: TensorInfo, first: int, number: int) -> Values:
        """Read rows of a tensor and dequantize them.

        Args:
            first: Index of the first row. A row extends along the last dimension; a tensor of one
                dimension has one row.
            number: Number of rows.

        Returns:
            float32 [number, columns].

        Raises:
            ModelLoadError: The file ends within the rows, or a value is not finite.
            OSError: The file cannot be read.
        """
        row_bytes = tensor.num_bytes // math.prod(tensor.shape[:-1])
        size = number * row_bytes
        raw = self.read(tensor.offset + first * row_bytes, size)
        if len(raw) != size:
            raise ModelLoadError(f"The file is cut off: it ends within the tensor {tensor.name}.")
        values = _dequantized(tensor, np.frombuffer(raw, np.uint8))
        if not np.isfinite(values).all():
            raise ModelLoadError(
                f"The file is damaged: the tensor {tensor.name} has values that are not finite."
            )
        return values.reshape(number, tensor.shape[-1])

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Read bytes of the file: fewer than `num_bytes` at its end.

        Raises:
            OSError: The file cannot be read.
        """
        return os.pread(self._file.fileno(), num_bytes, offset)

    def vector(self, tensor: TensorInfo) -> list[float]:
        """Return the values of a tensor of one dimension.

        Each is the shortest decimal that rounds to the tensor's float32 value.
        """
        return [float(str(value)) for value in self.rows(tensor, 0, 1)[0]]


@contextmanager
def open_gguf(path: Path) -> Iterator[GgufFile]:
    """Open a file and read its header.

    Raises:
        ModelLoadError: See `read_header`.
        OSError: The file cannot be read.
    """
    header = read_header(path)
    with path.open("rb") as file:
        yield GgufFile(file, header)


def _dequantized(tensor: TensorInfo, raw: npt.NDArray[np.uint8]) -> Values:
    """Return the float32 values of raw bytes, in the order of the file."""
    if tensor.type in _FLOATS:
        return np.asarray(raw.view(_FLOATS[tensor.type]), np.float32)
    try:
        with np.errstate(all="ignore"):  # damaged scales may overflow; the caller checks the values
            # The values are passed as one row, because gguf loops over rows in Python. Quantized
            # blocks do not cross rows, so the result is the same.
            return dequantize(raw.reshape(1, -1), tensor.type).reshape(-1)
    except NotImplementedError:
        raise ModelLoadError(
            f"The tensor {tensor.name} is stored as {tensor.type.name}, which is not served."
        ) from None
