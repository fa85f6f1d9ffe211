"""Checkpoints in the format of compressed-tensors, made from a tiny random one."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bench.checkpoints.compressed import Bits, convert, pack, quantize


@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 9),
    num_groups=st.integers(1, 3),
    size=st.floats(min_value=1e-6, max_value=1e4),
    bits=st.sampled_from([4, 8]),
)
def test_quantized_weight_differs_by_half_a_step_at_most(
    seed: int, rows: int, num_groups: int, size: float, bits: Bits
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 32 * num_groups, generator=generator) * size
    quantized, scale = quantize(weight, bits)
    assert quantized.dtype == torch.int8
    assert quantized.shape == weight.shape
    assert scale.dtype == torch.bfloat16
    assert scale.shape == (rows, 1 if bits == 8 else num_groups)
    assert int(quantized.abs().max()) < 2 ** (bits - 1)
    step = scale.float().repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)
    error = (quantized.float() * step - weight).abs()
    assert bool((error <= step * 0.5 * (1 + 1e-5)).all())


def test_row_of_zeros_is_quantized_to_zeros() -> None:
    quantized, scale = quantize(torch.zeros(2, 4), 8)
    assert not quantized.any()
    assert bool((scale > 0).all())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "model.embed_tokens.weight": torch.randn(10, 8, generator=generator).bfloat16(),
        "model.layers.0.self_attn.q_proj.weight": torch.randn(
            8, 32, generator=generator
        ).bfloat16(),
        "model.layers.0.self_attn.q_proj.bias": torch.randn(8, generator=generator).bfloat16(),
        "model.layers.0.input_layernorm.weight": torch.ones(8).bfloat16(),
        "lm_head.weight": torch.randn(10, 8, generator=generator).bfloat16(),
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (path / "tokenizer.json").write_text("{}")
    return path


def test_packed_values_are_in_the_order_of_their_bits() -> None:
    values = torch.randint(-7, 8, (3, 16), generator=torch.Generator().manual_seed(1)).to(
        torch.int8
    )
    packed = pack(values)
    assert packed.dtype == torch.int32
    unpacked = [((packed >> (4 * index)) & 15) - 8 for index in range(8)]
    assert torch.equal(torch.stack(unpacked, dim=2).flatten(1), values.to(torch.int32))


def test_int4_checkpoint_has_packed_weights(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int4", 4)
    after = load_file(tmp_path / "int4" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert name not in after
    assert after[f"{name}_packed"].shape == (8, 4)
    assert after[f"{name}_scale"].shape == (8, 1)
    assert after[f"{name}_shape"].tolist() == [8, 32]
    config = json.loads((tmp_path / "int4" / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


def test_only_projections_are_converted(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", 8)
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "int8" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert after.keys() == before.keys() | {f"{name}_scale"}
    assert after[name].dtype == torch.int8
    for kept in before.keys() - {name}:
        assert torch.equal(after[kept], before[kept])


def test_config_describes_the_quantization(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "int8", 8)
    config = json.loads((tmp_path / "int8" / "config.json").read_text())
    assert config["model_type"] == "llama"
    told = config["quantization_config"]
    assert (told["quant_method"], told["format"]) == ("compressed-tensors", "int-quantized")
    assert told["ignore"] == ["lm_head"]
    assert (tmp_path / "int8" / "tokenizer.json").is_file()
