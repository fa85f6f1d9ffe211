"""Reads the header of a GGUF file: its metadata, and the positions of its tensors.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Lengths and counts in a
damaged file can be anything. Each is checked against the file's size and against limits before
memory is allocated.
"""

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from service.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # version 1, with 32-bit counts, is not in use
_DEFAULT_ALIGNMENT = 32

# These limits are far larger than in real files: the largest vocabularies have 262 144 tokens and
# 600 000 merges.
_MAX_HEADER_BYTES = 128 * 2**20
_MAX_ELEMENTS = 4_000_000  # elements of all arrays together
_MAX_TENSORS = 100_000
_MAX_KEYS = 10_000
_MAX_NAME_BYTES = 256
_MAX_DIMENSIONS = 4

_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_UINT32, _FLOAT32, _BOOL = 4, 6, 7


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The position of one tensor in the file, and the storage of its values."""

    name: str
    shape: tuple[int, ...]  # from the outermost dimension, as in torch
    type: GGMLQuantizationType
    offset: int  # in bytes from the start of the file
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A GGUF file's contents, except the tensors' values.

    Metadata values are int, float, bool, str or a list of one of these. A 32-bit float becomes the
    shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    num_bytes: int  # size of the header in the file


def read_header(file: Path) -> Header:
    """Read the header of `file` and check that all its tensors are inside the file.

    Raises:
        ModelLoadError: The file is not a GGUF file, or is damaged or truncated.
        OSError: The file cannot be read.
    """
    with file.open("rb", buffering=2**20) as opened:
        reader = _Reader(opened)
        if reader.take(len(_MAGIC), "the magic number") != _MAGIC:
            raise ModelLoadError("The file does not begin with 'GGUF', so it is not a GGUF file.")
        version = reader.integer("<I", "the version")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            if swapped in _VERSIONS:
                raise ModelLoadError("The file is a big-endian GGUF file, which is not supported.")
            raise ModelLoadError(
                f"The file has GGUF version {version}. Versions 2 and 3 are supported."
            )
        num_tensors = reader.count("<Q", _MAX_TENSORS, "tensors")
        num_keys = reader.count("<Q", _MAX_KEYS, "metadata keys")
        metadata = _read_metadata(reader, num_keys)
        alignment = _alignment(metadata)
        infos = [_read_tensor_info(reader) for _ in range(num_tensors)]
        start = _aligned(reader.position, alignment)
        tensors = _located(infos, start, alignment, reader.file_size)
        return Header(metadata, tensors, reader.position)


class _Reader:
    """Reads values of the header one after the other, and checks their sizes first.

    Its methods raise ModelLoadError. `what` is the name of the value in the message.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.file_size = os.fstat(file.fileno()).st_size
        self.position = 0
        self._num_elements = 0

    def take(self, num_bytes: int, what: str) -> bytes:
        """Read the next `num_bytes` bytes."""
        if num_bytes > self.file_size - self.position:
            raise ModelLoadError(f"The file is damaged or cut off: it ends within {what}.")
        if self.position + num_bytes > _MAX_HEADER_BYTES:
            raise ModelLoadError(
                f"The file is damaged: its header exceeds {_MAX_HEADER_BYTES} bytes at {what}."
            )
        taken = self._file.read(num_bytes)
        if len(taken) != num_bytes:
            raise ModelLoadError(f"The file is damaged or cut off: it ends within {what}.")
        self.position += num_bytes
        return taken

    def integer(self, form: str, what: str) -> int:
        value: int = struct.unpack(form, self.take(struct.calcsize(form), what))[0]
        return value

    def count(self, form: str, limit: int, what: str) -> int:
        value = self.integer(form, f"the number of {what}")
        if value > limit:
            raise ModelLoadError(
                f"The file is damaged: it claims {value} {what}; at most {limit} are possible."
            )
        return value

    def num_elements(self, what: str) -> int:
        """Read the length of an array, and check the limit for all arrays together."""
        value = self.count("<Q", _MAX_ELEMENTS - self._num_elements, f"elements of {what}")
        self._num_elements += value
        return value

    def string(self, what: str, max_bytes: int = _MAX_HEADER_BYTES) -> str:
        num_bytes = int.from_bytes(self.take(8, what), "little")
        if num_bytes > max_bytes:
            raise ModelLoadError(
                f"The file is damaged: it claims {num_bytes} bytes for {what}; at most {max_bytes} "
                "are possible."
            )
        try:
            return self.take(num_bytes, what).decode()
        except UnicodeDecodeError:
            raise ModelLoadError(f"The file is damaged: {what} is not UTF-8.") from None


def _read_metadata(reader: _Reader, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = reader.string("the name of a metadata key", _MAX_NAME_BYTES)
        if not key.isprintable():
            raise ModelLoadError(f"The file is damaged: it has the metadata key {key!r}.")
        if key in metadata:
            raise ModelLoadError(f"The file is damaged: it has the metadata key {key} twice.")
        metadata[key] = _read_value(reader, reader.integer("<I", key), key)
    return metadata


def _read_value(reader: _Reader, kind: int, key: str) -> Any:
    if kind == _STRING:
        return reader.string(key)
    if kind in _SCALARS:
        return _values(reader, kind, 1, key)[0]
    if kind != _ARRAY:
        raise ModelLoadError(f"The file is damaged: {key} has a value of the unknown type {kind}.")
    kind = reader.integer("<I", key)
    num_elements = reader.num_elements(key)
    if kind == _STRING:
        return [reader.string(key) for _ in range(num_elements)]
    if kind in _SCALARS:
        return _values(reader, kind, num_elements, key)
    raise ModelLoadError(f"The file is damaged: {key} is an array of the unknown type {kind}.")


def _values(reader: _Reader, kind: int, number: int, key: str) -> list[Any]:
    dtype = _SCALARS[kind]
    values = np.frombuffer(reader.take(number * dtype.itemsize, key), dtype)
    if kind == _BOOL:
        return [bool(value) for value in values.view(np.uint8)]
    if kind == _FLOAT32 and number == 1:
        return [float(str(values[0]))]
    return list(values.tolist())


def _alignment(metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment.bit_count() != 1:
        raise ModelLoadError("The file is damaged: general.alignment is not a power of two.")
    return alignment


def _read_tensor_info(reader: _Reader) -> TensorInfo:
    """Read the entry of a tensor. Its offset is relative to the start of all tensors' values."""
    name = reader.string("the name of a tensor", _MAX_NAME_BYTES)
    if not name.isprintable():
        raise ModelLoadError(f"The file is damaged: it has a tensor named {name!r}.")
    num_dimensions = reader.count("<I", _MAX_DIMENSIONS, f"dimensions of the tensor {name}")
    sizes = struct.unpack(f"<{num_dimensions}Q", reader.take(8 * num_dimensions, name))
    kind = reader.integer("<I", name)
    offset = reader.integer("<Q", name)
    try:
        quantization = GGMLQuantizationType(kind)
    except ValueError:
        raise ModelLoadError(
            f"The tensor {name} has the type {kind}, which is not served."
        ) from None
    block_size, block_bytes = GGML_QUANT_SIZES[quantization]
    shape = tuple(reversed(sizes))
    if not shape or 0 in shape or shape[-1] % block_size:
        raise ModelLoadError(
            f"The file is damaged: the tensor {name} has the shape {list(shape)} in blocks of "
            f"{block_size}."
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    return TensorInfo(name, shape, quantization, offset, num_bytes)


def _located(
    infos: list[TensorInfo], start: int, alignment: int, file_size: int
) -> dict[str, TensorInfo]:
    """Return the tensors by name, with offsets from the start of the file.

    As in llama.cpp, each tensor must begin where the previous one ends. So tensors do not overlap.
    """
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for info in infos:
        if info.name in tensors:
            raise ModelLoadError(f"The file is damaged: it has the tensor {info.name} twice.")
        if info.offset != expected:
            raise ModelLoadError(
                f"The file is damaged: the tensor {info.name} lies at {info.offset} where "
                f"{expected} is expected."
            )
        offset = start + info.offset
        if offset + info.num_bytes > file_size:
            raise ModelLoadError(
                f"The file is damaged or cut off: it ends within the tensor {info.name}."
            )
        tensors[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.num_bytes)
        expected = _aligned(expected + info.num_bytes, alignment)
    return tensors


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
