"""The int8 checkpoint, made from a tiny random one."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench.checkpoints import convert, quantize


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    size=st.floats(min_value=1e-6, max_value=1e4),
)
def test_quantized_weight_differs_by_half_a_step_at_most(
    seed: int, rows: int, columns: int, size: float
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    quantized, scale = quantize(weight)
    assert quantized.dtype == torch.int8
    assert quantized.shape == weight.shape
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (rows, 1)
    error = (quantized.float() * scale.float() - weight).abs()
    assert bool((error <= scale.float() * 0.5 * (1 + 1e-5)).all())


def test_row_of_zeros_is_quantized_to_zeros() -> None:
    quantized, scale = quantize(torch.zeros(2, 4))
    assert not quantized.any()
    assert bool((scale > 0).all())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "model.embed_tokens.weight": torch.randn(10, 8, generator=generator).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(8, 8, generator=generator).bfloat16(),
        "model.layers.0.self_attn.q_proj.bias": torch.randn(8, generator=generator).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(8).bfloat16(),
        "lm_head.weight": torch.randn(10, 8, generator=generator).bfloat16(),
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    return path


def test_only_projections_are_converted(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "int8" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert after.keys() == before.keys() | {f"{name}_scale"}
    assert after[name].dtype == torch.int8
    for kept in before.keys() - {name}:
        assert torch.equal(after[kept], before[kept])


def test_config_describes_the_quantization(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8")
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["model_type"] == "llama"
    told = config["quantization_config"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", "int-quantized")
    assert told["ignore"] == ["lm_head"]
    assert (tmp_path / "int8" / "tokenizer.json").is_file()
