"""The GGUF file of a random checkpoint, read by the package gguf."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bench.checkpoints import gguf_file, random
from bench.shapes import Shape
from tests.bench.models import SHAPE, tokenizer

QWEN3 = Shape("qwen3", 32, 64, 2, 4, 2, 8, 40, 1e4, tie_word_embeddings=False)


@pytest.mark.parametrize("shape", [SHAPE, QWEN3], ids=["llama", "qwen3"])
def test_file_has_the_weights_and_the_tokenizer(shape: Shape, tmp_path: Path) -> None:
    source = tmp_path / "bf16"
    random.write(shape, tokenizer(tmp_path / "tokenizer"), source)
    gguf_file.write(shape, source, tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = load_file(source / "model-00001-of-00001.safetensors")
    assert len(tensors) == len(weights)
    down = weights["model.layers.1.mlp.down_proj.weight"]
    found = tensors["blk.1.ffn_down.weight"]
    assert found.tensor_type == gguf.GGMLQuantizationType.BF16
    assert np.array_equal(found.data.reshape(-1), down.view(torch.uint8).numpy().reshape(-1))
    query = weights["model.layers.1.self_attn.q_proj.weight"].view(torch.uint8).numpy()
    is_equal = np.array_equal(tensors["blk.1.attn_q.weight"].data, query)
    assert is_equal is (shape.model_type == "qwen3")  # for Llama, rows are reordered
    assert len(reader.fields["tokenizer.ggml.tokens"].data) == 16
    kinds = [int(reader.fields["tokenizer.ggml.token_type"].parts[i][0]) for i in (-16, -15, -1)]
    assert kinds == [gguf.TokenType.CONTROL, gguf.TokenType.CONTROL, gguf.TokenType.NORMAL]
