"""Weights packed by AWQ, GPTQ and compressed-tensors, by the definitions of their layouts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.engine.load import EngineOptions, load_model
from service.engine.packed_weights import PackedWeights, unpack
from service.errors import ModelLoadError
from tests.service.engine.logits import logprobs_of
from tests.service.engine.models import make_config, reference_logprobs, save_model

TOKENS = (5, 17, 3, 96, 40, 8, 22, 61, 5)
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
GROUP = 32


def signed(value: int) -> int:
    """Return a number of 32 bits as an int32 stores it."""
    return value - 2**32 if value >= 2**31 else value


def packed(values: Tensor, bits: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Pack whole numbers [R, C] along the second dimension, from the lowest bits on."""
    number = 32 // bits
    rows = []
    for unpadded in values.int().tolist():
        row = unpadded + [0] * (-len(unpadded) % number)
        parts = [row[start : start + number] for start in range(0, len(row), number)]
        chosen = order or range(number)
        rows.append(
            [signed(sum(part[j] << (bits * i) for i, j in enumerate(chosen))) for part in parts]
        )
    return torch.tensor(rows, dtype=torch.int32)


def quantized(
    weight: Tensor, bits: int, group: Tensor, *, is_symmetric: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the values [N, K], the scales and the zero points [N, groups].

    `group` has the group of each input.
    """
    num_groups = int(group.max()) + 1
    levels = 2**bits - 1
    values = torch.empty_like(weight)
    scale, zeros = (torch.empty(len(weight), num_groups) for _ in range(2))
    for g in range(num_groups):
        part = weight[:, group == g]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if is_symmetric:
            high = part.abs().amax(1)
            low = -high
        scale[:, g] = ((high - low) / (levels - 1)).half().float()
        zeros[:, g] = 2 ** (bits - 1) if is_symmetric else (-low / scale[:, g]).round().clamp(1, 15)
        step, zero = scale[:, g, None], zeros[:, g, None]
        values[:, group == g] = (part / step + zero).round().clamp(0, levels)
    return values, scale, zeros


Pack = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def adjacent(num_inputs: int, size: int = GROUP) -> Tensor:
    return torch.arange(num_inputs) // size


def shuffled(num_inputs: int) -> Tensor:
    return adjacent(num_inputs)[torch.randperm(num_inputs)]


def awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    group = adjacent(weight.shape[1])
    values, scale, zeros = quantized(weight, 4, group, is_symmetric=False)
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    tensors = {
        "qweight": packed(values.T, 4, order),
        "qzeros": packed(zeros.T, 4, order),
        "scales": scale.T.half(),
    }
    return tensors, (values - zeros[:, group]) * scale[:, group]


def gptq(
    bits: int, zero_offset: int, *, is_symmetric: bool, order: Callable[[int], Tensor] = adjacent
) -> Pack:
    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        group = order(weight.shape[1])
        values, scale, zeros = quantized(weight, bits, group, is_symmetric=is_symmetric)
        tensors = {
            "qweight": packed(values, bits).T,
            "qzeros": packed(zeros.T - zero_offset, bits),
            "scales": scale.T.half(),
            "g_idx": group.int(),
        }
        return tensors, (values - zeros[:, group]) * scale[:, group]

    return pack


def compressed(bits: int, size: int | None, *, is_symmetric: bool) -> Pack:
    def pack(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        group = adjacent(weight.shape[1], size or weight.shape[1])
        values, scale, zeros = quantized(weight, bits, group, is_symmetric=is_symmetric)
        tensors = {
            "weight_packed": packed(values, bits),
            "weight_scale": scale.half(),
            "weight_shape": torch.tensor(weight.shape),
        }
        if not is_symmetric:
            tensors["weight_zero_point"] = packed(zeros.T, bits).T
        return tensors, (values - zeros[:, group]) * scale[:, group]

    return pack


def pack_quantized(bits: int, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int"} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }


METHODS: dict[str, tuple[dict[str, Any], Pack, str]] = {
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        awq,
        "awq",
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
        gptq(4, 1, is_symmetric=True),
        "gptq 4 bits",
    ),
    "gptq v2, asymmetric": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq_v2"},
        gptq(4, 0, is_symmetric=False),
        "gptq 4 bits",
    ),
    "gptq with reordered inputs": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
        gptq(4, 1, is_symmetric=True, order=shuffled),
        "gptq 4 bits",
    ),
    "gptq in 8 bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": 32},
        gptq(8, 1, is_symmetric=True),
        "gptq 8 bits",
    ),
    "compressed-tensors": (
        pack_quantized(4, strategy="group", group_size=32, symmetric=True),
        compressed(4, 32, is_symmetric=True),
        "compressed-tensors W4A16",
    ),
    "compressed-tensors, asymmetric": (
        pack_quantized(4, strategy="group", group_size=32, symmetric=False),
        compressed(4, 32, is_symmetric=False),
        "compressed-tensors W4A16",
    ),
    "compressed-tensors by channel": (
        pack_quantized(4, strategy="channel", symmetric=True),
        compressed(4, None, is_symmetric=True),
        "compressed-tensors W4A16",
    ),
    "compressed-tensors in 8 bits": (
        pack_quantized(8, strategy="group", group_size=32, symmetric=True),
        compressed(8, 32, is_symmetric=True),
        "compressed-tensors W8A16",
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), make_config("llama", **SIZES))


def pack_checkpoint(
    llama: Path, directory: Path, pack: Pack, description: dict[str, Any]
) -> tuple[Path, Path]:
    """Write a packed copy of a checkpoint, and one with the floats that it represents."""
    path, meant = (Path(shutil.copytree(llama, directory / name)) for name in ("packed", "meant"))
    stored, floats = (load_file(path / "model.safetensors") for _ in range(2))
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        tensors, floats[name] = pack(stored.pop(name).float())
        layer = name.removesuffix("weight")
        stored |= {layer + part: tensor.contiguous() for part, tensor in tensors.items()}
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    save_file(floats, meant / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps(config | {"quantization_config": description}))
    return path, meant


@pytest.mark.parametrize("name", METHODS)
def test_packed_weights_give_the_logits_of_the_floats_they_stand_for(
    name: str, llama: Path, tmp_path: Path
) -> None:
    description, pack, method = METHODS[name]
    path, meant = pack_checkpoint(llama, tmp_path, pack, description)
    expected = reference_logprobs(meant)(TOKENS)
    exact = EngineOptions(path, device="cpu", dtype="float32")
    torch.testing.assert_close(logprobs_of(exact, TOKENS), expected, atol=2e-4, rtol=1e-4)
    kept = EngineOptions(path, device="cpu")
    assert load_model(kept).description["quantization"] == method
    error = (logprobs_of(kept, TOKENS) - expected).square().mean().sqrt()
    assert error < 0.15 * expected.std()


@pytest.mark.parametrize(
    ("file", "fields", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32}, "gptq"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}, "awq"),
    ],
)
def test_file_of_the_quantizer_is_read(
    file: str, fields: dict[str, Any], method: str, llama: Path, tmp_path: Path
) -> None:
    path, meant = pack_checkpoint(llama, tmp_path, METHODS[method][1], {})
    (path / file).write_text(json.dumps(fields))
    expected = reference_logprobs(meant)(TOKENS)
    exact = EngineOptions(path, device="cpu", dtype="float32")
    torch.testing.assert_close(logprobs_of(exact, TOKENS), expected, atol=2e-4, rtol=1e-4)


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[name]

    return change


def replaced(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name] = tensor

    return change


Layout = Literal["awq", "gptq", "compressed-tensors"]


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("awq", without("scales"), "there is no scales"),
        ("awq", without("qzeros"), "there is no qzeros"),
        ("awq", replaced("qweight", torch.zeros(64, 2)), r"qweight is torch.float32 \[64, 2\]"),
        ("awq", replaced("scales", torch.ones(3, 16)), r"scale has the shape \[16, 3\]"),
        ("awq", replaced("scales", torch.full((2, 16), torch.nan)), "not finite"),
        ("gptq", replaced("qzeros", torch.zeros(1, 2).int()), r"zero points have the shape"),
        ("gptq", replaced("g_idx", torch.zeros(63)), r"g_idx is torch.float32 \[63\]"),
        ("gptq", replaced("g_idx", torch.full((64,), 2)), "a group outside the 2 groups"),
        ("compressed-tensors", without("weight_shape"), "there is no weight_shape"),
        (
            "compressed-tensors",
            replaced("weight_shape", torch.tensor([16, 63])),
            r"weight_shape is \[16, 63\]",
        ),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    layout: Layout, change: Callable[[dict[str, Tensor]], None], message: str
) -> None:
    tensors, _ = METHODS[layout][1](torch.randn(16, 64))
    change(tensors)
    with pytest.raises(ValueError, match=message):
        unpack(PackedWeights("", layout, 4, 1), tensors)


def test_layer_without_a_scale_is_named(llama: Path, tmp_path: Path) -> None:
    description, pack, _ = METHODS["awq"]
    path, _ = pack_checkpoint(llama, tmp_path, pack, description)
    stored = load_file(path / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.scales"]
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1\.mlp\.up_proj\.weight is packed, and there is"):
        load_model(EngineOptions(path, device="cpu"))
