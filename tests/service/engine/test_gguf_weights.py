from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from service.engine.gguf_blocks import BlockWeight
from service.engine.gguf_weights import GgufWeights
from service.errors import ModelLoadError
from service.gguf.index import LINK, IndexedTensor

CPU = torch.device("cpu")
OFFSET = 64


def stored(directory: Path, raw: bytes, shape: tuple[int, ...], kind: str) -> IndexedTensor:
    """Write a file with one tensor, and a link to it, and return the tensor."""
    file = directory / "model.gguf"
    file.write_bytes(bytes(OFFSET) + raw)
    (directory / LINK).symlink_to(file)
    return IndexedTensor("blk.0.ffn_up.weight", kind, shape, OFFSET, len(raw))


def q8_0(directory: Path, values: np.ndarray) -> IndexedTensor:
    raw = quantize(values.astype(np.float32), GGMLQuantizationType.Q8_0)
    return stored(directory, raw.tobytes(), values.shape, "Q8_0")


def read(directory: Path, tensor: IndexedTensor) -> tuple[torch.Tensor, BlockWeight | None]:
    with closing(GgufWeights(directory, {"w": tensor}, CPU)) as weights:
        return weights.read("w"), weights.read_grouped("w")


def rejection(directory: Path, tensor: IndexedTensor) -> str:
    with pytest.raises(ModelLoadError) as caught:
        read(directory, tensor)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weight_of_many_chunks_is_read_completely(tmp_path: Path) -> None:
    tensor = q8_0(tmp_path, np.random.default_rng(0).standard_normal((1500, 2048)))
    raw = np.frombuffer((tmp_path / LINK).read_bytes()[OFFSET:], np.uint8).reshape(1500, -1)
    expected = torch.from_numpy(dequantize(raw, GGMLQuantizationType.Q8_0))
    values, weight = read(tmp_path, tensor)
    assert torch.equal(values, expected)
    assert weight is not None
    assert torch.equal(weight.dequantized(), expected)


def test_rotated_pairs_become_halves(tmp_path: Path) -> None:
    pairs = np.repeat(np.array([0, 1, 2, 3, 4, 5, 6, 7])[:, None], 32, axis=1)
    tensor = replace(q8_0(tmp_path, pairs), num_heads=2)
    values, weight = read(tmp_path, tensor)
    assert weight is not None
    for found in (values, weight.dequantized()):
        expected = torch.tensor([0.0, 2, 1, 3, 4, 6, 5, 7])
        torch.testing.assert_close(found[:, 0], expected, rtol=0.01, atol=0.0)


def test_addend_of_norms_is_subtracted(tmp_path: Path) -> None:
    raw = np.array([1.5, 1.0], np.float32).tobytes()
    tensor = replace(stored(tmp_path, raw, (2,), "F32"), addend=1.0)
    values, weight = read(tmp_path, tensor)
    assert values.tolist() == [0.5, 0.0]
    assert weight is None


def test_file_that_was_cut_off_names_the_tensor(tmp_path: Path) -> None:
    tensor = q8_0(tmp_path, np.ones((2, 32)))
    file = (tmp_path / LINK).resolve()
    file.write_bytes(file.read_bytes()[:-1])
    text = rejection(tmp_path, tensor)
    assert text == f"{file} cannot be loaded: the tensor blk.0.ffn_up.weight is cut off."


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_values_that_are_not_finite_name_the_tensor(kind: str, tmp_path: Path) -> None:
    raw = {"F32": np.full(32, np.inf, np.float32).tobytes(), "Q8_0": b"\x00\x7c" + bytes(32)}
    tensor = stored(tmp_path, raw[kind], (1, 32), kind)
    assert "blk.0.ffn_up.weight has values that are not finite" in rejection(tmp_path, tensor)


def test_unknown_type_names_the_tensor(tmp_path: Path) -> None:
    tensor = stored(tmp_path, bytes(36), (1, 32), "Q8_1")
    assert "blk.0.ffn_up.weight is stored as Q8_1, which is not supp" in rejection(tmp_path, tensor)


def test_missing_file_is_named(tmp_path: Path) -> None:
    tensor = q8_0(tmp_path, np.ones((1, 32)))
    (tmp_path / "model.gguf").unlink()
    assert "model.gguf cannot be read: No such file or directory" in rejection(tmp_path, tensor)
