"""Makes checkpoints in the formats of quantizers, with the float weights that they represent.

Each method is implemented here by its definition: quantize, store, and multiply back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
_WEIGHTS = "model.safetensors"

# Converts a weight [N, K] to the tensors that are stored for it, by the last part of their names,
# and to the float weight that they represent.
Quantize = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]


def fp8_per_tensor(scale_name: str, *shape: int) -> Quantize:
    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        scale = weight.abs().max() / FP8_MAX
        stored = (weight / scale).to(FP8)
        tensors = {"weight": stored, scale_name: scale.reshape(shape)}
        return tensors, stored.float() * scale

    return quantize


def fp8_per_channel(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / FP8_MAX
    stored = (weight / scale).to(FP8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def fp8_blocks(
    scale_name: str, height: int, width: int, scale_dtype: torch.dtype = torch.float32
) -> Quantize:
    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        num_rows, num_columns = weight.shape
        grid = -(-num_rows // height), -(-num_columns // width)
        stored, meant = torch.empty(weight.shape, dtype=FP8), torch.empty_like(weight)
        scales = torch.empty(grid, dtype=scale_dtype)
        for i in range(grid[0]):
            for j in range(grid[1]):
                block = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                scales[i, j] = weight[block].abs().max() / FP8_MAX * 2
                scale = scales[i, j].float()
                stored[block] = (weight[block] / scale).to(FP8)
                meant[block] = stored[block].float() * scale
        return {"weight": stored, scale_name: scales}, meant

    return quantize


def modelopt_blocks(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Quantize as ModelOpt does, whose scales keep the dimensions of blocks in their shape."""
    tensors, meant = fp8_blocks("weight_scale", 128, 128)(weight)
    return tensors | {"weight_scale": tensors["weight_scale"][:, None, :, None]}, meant


def int8_per_channel(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale.bfloat16()}, stored * scale.bfloat16().float()


def int8_asymmetric(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    scale = (high - low) / 255
    zero_point = (-128 - low / scale).round().clamp(-128, 127).to(torch.int8)
    stored = (weight / scale + zero_point).round().clamp(-128, 127).to(torch.int8)
    tensors = {"weight": stored, "weight_scale": scale, "weight_zero_point": zero_point}
    return tensors, (stored.float() - zero_point.float()) * scale


def int8_groups(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    groups = weight.reshape(len(weight), -1, 8)
    scale = groups.abs().amax(2, keepdim=True) / 127
    stored = (groups / scale).round().to(torch.int8)
    meant = (stored * scale).flatten(1)
    return {"weight": stored.flatten(1), "weight_scale": scale.squeeze(2)}, meant


def bitsandbytes_int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    greatest = weight.abs().amax(1)
    stored = (weight * (127 / greatest)[:, None]).round().to(torch.int8)
    order = torch.tensor(0, dtype=torch.uint8)
    tensors = {"weight": stored, "SCB": greatest, "weight_format": order}
    return tensors, stored * (greatest / 127)[:, None]


def with_input_scale(quantize: Quantize, name: str = "input_scale") -> Quantize:
    def quantized(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        tensors, meant = quantize(weight)
        return tensors | {name: torch.tensor(0.01)}, meant

    return quantized


def compressed_tensors(weights: dict[str, Any], **fields: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"num_bits": 8} | weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    } | fields


_FLOAT = {"type": "float", "symmetric": True}
_INT = {"type": "int", "symmetric": True}

# For each method: its description in the config, and the function that converts a weight.
METHODS: dict[str, tuple[dict[str, Any], Quantize]] = {
    "fp8 blocks": (
        {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 24]},
        fp8_blocks("weight_scale_inv", 16, 24),
    ),
    "fp8 blocks with scales that are powers of two": (
        {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [16, 24]},
        fp8_blocks("weight_scale_inv", 16, 24, torch.float8_e8m0fnu),
    ),
    "fp8 per tensor": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
        with_input_scale(fp8_per_tensor("weight_scale_inv"), "activation_scale"),
    ),
    "fp8 of vllm": (
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
        with_input_scale(fp8_per_tensor("weight_scale", 1)),
    ),
    "fbgemm fp8": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
        with_input_scale(fp8_per_channel, "input_scale_ub"),
    ),
    "compressed-tensors fp8 dynamic": (
        compressed_tensors(_FLOAT | {"strategy": "channel"}, format="float-quantized"),
        fp8_per_channel,
    ),
    "compressed-tensors fp8 static": (
        compressed_tensors(_FLOAT | {"strategy": "tensor"}, format="float-quantized"),
        with_input_scale(fp8_per_tensor("weight_scale", 1)),
    ),
    "compressed-tensors fp8 blocks": (
        compressed_tensors(
            _FLOAT | {"strategy": "block", "block_structure": [16, 24]}, format="float-quantized"
        ),
        fp8_blocks("weight_scale", 16, 24),
    ),
    "compressed-tensors in a group's own format": (
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {
                "group_0": {
                    "format": "float-quantized",
                    "weights": _FLOAT | {"num_bits": 8, "strategy": "channel"},
                }
            },
        },
        fp8_per_channel,
    ),
    "compressed-tensors int8": (
        compressed_tensors(_INT | {"strategy": "channel"}, format="int-quantized"),
        int8_per_channel,
    ),
    "compressed-tensors int8 with zero points": (
        compressed_tensors(
            _INT | {"strategy": "channel", "symmetric": False}, format="int-quantized"
        ),
        int8_asymmetric,
    ),
    "compressed-tensors int8 in groups": (
        compressed_tensors(_INT | {"strategy": "group", "group_size": 8}, format="int-quantized"),
        int8_groups,
    ),
    "modelopt fp8": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["lm_head"]},
        with_input_scale(fp8_per_tensor("weight_scale")),
    ),
    "modelopt fp8 per channel": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        lambda weight: _with_flat_scale(*fp8_per_channel(weight)),
    ),
    "modelopt fp8 blocks": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        modelopt_blocks,
    ),
    "bitsandbytes int8": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
        bitsandbytes_int8,
    ),
}


def _with_flat_scale(tensors: dict[str, Tensor], meant: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    return tensors | {"weight_scale": tensors["weight_scale"].flatten()}, meant


def quantize_checkpoint(path: Path, quantize: Quantize, meant: Path | None = None) -> None:
    """Replace the weights of the layers' projections in the checkpoint `path` by quantized ones.

    The checkpoint `meant`, a copy of it, gets the float weights that these represent.
    """
    stored, floats = load_file(path / _WEIGHTS), load_file(path / _WEIGHTS)
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        tensors, floats[name] = quantize(stored.pop(name).float())
        layer = name.removesuffix("weight")
        stored |= {layer + part: tensor.clone().contiguous() for part, tensor in tensors.items()}
    save_file(stored, path / _WEIGHTS, metadata={"format": "pt"})
    if meant is not None:
        save_file(floats, meant / _WEIGHTS, metadata={"format": "pt"})


def change_config(path: Path, **fields: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))


def add_tensors(path: Path, **tensors: Tensor) -> None:
    stored = load_file(path / _WEIGHTS) | tensors
    save_file(stored, path / _WEIGHTS, metadata={"format": "pt"})
