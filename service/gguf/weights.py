"""Matches the tensors of a GGUF file with those of a checkpoint, and writes them in bf16.

The library of safetensors can only write tensors that are all in memory. The format is a JSON
header, followed by the values: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from service.errors import ModelLoadError
from service.gguf.file import GgufFile, Values
from service.gguf.header import TensorInfo
from service.gguf.index import IndexedTensor
from service.gguf.modules import Weight

_CHUNK_VALUES = 2**17  # number of values converted at once; they fit into a core's cache
_BF16_BYTES = 2
_HEADER_ALIGNMENT = 8


def pair_up(
    tensors: Mapping[str, TensorInfo], weights: Mapping[str, Weight], harmless: Sequence[str]
) -> list[tuple[TensorInfo, Weight]]:
    """Match each tensor of the file with its `Weight`, in the order of the file.

    Args:
        tensors: The file's tensors by name.
        weights: The expected tensors by their names in the file.
        harmless: Names of tensors that may be in the file and are not converted.

    Raises:
        ModelLoadError: A tensor is missing, has another shape, or is not expected.
    """
    if missing := [name for name in weights if name not in tensors]:
        raise ModelLoadError(f"The file lacks {len(missing)} of its tensors, {missing[0]} first.")
    pairs = []
    for name, tensor in tensors.items():
        weight = weights.get(name)
        if weight is None:
            if name not in harmless:
                raise ModelLoadError(
                    f"The file has the tensor {name}, which is not served for this architecture."
                )
            continue
        if tensor.shape != weight.shape:
            raise ModelLoadError(
                f"The tensor {name} has the shape {list(tensor.shape)}; its metadata require "
                f"{list(weight.shape)}."
            )
        pairs.append((tensor, weight))
    return pairs


def indexed(pairs: list[tuple[TensorInfo, Weight]]) -> dict[str, IndexedTensor]:
    """Return the checkpoint's tensors by name, with their positions in the file."""
    tensors = {}
    for tensor, weight in pairs:
        outputs = weight.outputs()
        num_bytes = tensor.num_bytes // len(outputs)
        for index, (name, shape) in enumerate(outputs):
            tensors[name] = IndexedTensor(
                tensor.name,
                tensor.type.name,
                shape,
                tensor.offset + index * num_bytes,
                num_bytes,
                weight.num_heads,
                weight.offset,
            )
    return tensors


def write_weights(path: Path, file: GgufFile, pairs: list[tuple[TensorInfo, Weight]]) -> None:
    """Write the safetensors file `path`.

    Raises:
        ModelLoadError: The GGUF file is damaged.
        OSError: A file cannot be read or written.
    """
    with path.open("wb") as output:
        _write_header(output, [weight for _, weight in pairs])
        for tensor, weight in pairs:
            for values in _chunks(file, tensor, weight):
                output.write(_bf16(values).data)


def _write_header(output: BinaryIO, weights: list[Weight]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, shape in (output for weight in weights for output in weight.outputs()):
        end = start + math.prod(shape) * _BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // _HEADER_ALIGNMENT) * _HEADER_ALIGNMENT)
    output.write(len(text).to_bytes(8, "little"))
    output.write(text)


def _chunks(file: GgufFile, tensor: TensorInfo, weight: Weight) -> Iterator[Values]:
    """Yield a weight's values for the checkpoint, some rows at a time."""
    if len(tensor.shape) == 1:
        values = file.rows(tensor, 0, 1).reshape(-1, 1)
        if weight.num_heads is not None:
            values = _unpermuted(values, values.shape[0] // weight.num_heads)
        yield values - np.float32(weight.offset) if weight.offset else values
        return
    num_rows, num_columns = math.prod(tensor.shape[:-1]), tensor.shape[-1]
    head_dim = num_rows // weight.num_heads if weight.num_heads is not None else 1
    step = max(1, _CHUNK_VALUES // (num_columns * head_dim)) * head_dim
    for first in range(0, num_rows, step):
        values = file.rows(tensor, first, min(step, num_rows - first))
        yield values if weight.num_heads is None else _unpermuted(values, head_dim)


def _unpermuted(values: Values, head_dim: int) -> Values:
    """Reorder rows [heads * head_dim, columns]: each head's rotated pairs become two halves."""
    heads = values.reshape(-1, head_dim // 2, 2, values.shape[-1])
    return heads.swapaxes(1, 2).reshape(values.shape)


def _bf16(values: Values) -> npt.NDArray[np.uint16]:
    """Round finite values to the nearest bfloat16, ties to even, and return their bits."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))
    return (rounded >> 16).astype("<u2")
