"""Checkpoints with random weights: equal for equal arguments, and loadable by name."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bench.checkpoints import random
from bench.shapes import Shape
from tests.bench.models import SHAPE, tokenizer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tokenizer(tmp_path / "tokenizer")


def test_equal_arguments_give_equal_files(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        random.write(SHAPE, source, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert "model-00001-of-00001.safetensors" in files
    assert "model.safetensors.index.json" in files
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tensors_have_the_names_and_shapes_of_the_shape(source: Path, tmp_path: Path) -> None:
    random.write(SHAPE, source, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model-00001-of-00001.safetensors")
    assert {name: tuple(t.shape) for name, t in tensors.items()} == SHAPE.tensors(16)


def test_own_vocabulary_adds_tokens_with_texts(source: Path, tmp_path: Path) -> None:
    random.write(SHAPE, source, tmp_path / "a", has_own_vocabulary=True)
    vocabulary = json.loads((tmp_path / "a" / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(40))
    assert json.loads((tmp_path / "a" / "config.json").read_text())["vocab_size"] == 40


def test_vocabulary_smaller_than_the_tokenizer_is_rejected(source: Path, tmp_path: Path) -> None:
    small = Shape("llama", 32, 64, 1, 4, 2, 8, 10, 1e4, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="the tokenizer has 16 tokens, the shape only 10"):
        random.write(small, source, tmp_path / "a", has_own_vocabulary=True)
