"""Converts a checkpoint in bfloat16 to the format of compressed-tensors, which vLLM loads.

Every projection is converted. Embeddings, norms and the head are unchanged. Weights are quantized
by rounding, without calibration.
"""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bench.checkpoints.files import INDEX, write_json

Bits = Literal[4, 8]

_GROUP_SIZE = 32


def quantize(weight: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight to integers with bfloat16 scales. Their product approximates the weight.

    Args:
        weight: [out, in].
        bits: 8 bits have a scale for each row, and 4 bits one for each 32 inputs of a row. `in`
            must then be a multiple of 32.

    Returns:
        int8 [out, in] and scales [out, num_groups]. A scale is slightly larger than the group's
        largest weight needs. So no value overflows after rounding the scale to the eight bits of
        bfloat16, and the error of each weight is at most half a scale.
    """
    most = 2 ** (bits - 1) - 1
    group_size = weight.shape[1] if bits == 8 else _GROUP_SIZE
    exact = weight.float().reshape(len(weight), -1, group_size)
    largest = exact.abs().amax(dim=2).clamp(min=1e-8)
    scale = (largest / most * (1 + 2**-8)).to(torch.bfloat16)
    values = (exact / scale.float()[:, :, None]).round().clamp(-most, most)
    return values.flatten(1).to(torch.int8), scale


def pack(values: torch.Tensor) -> torch.Tensor:
    """Pack eight values of 4 bits into each int32. The first value has the lowest bits.

    Args:
        values: int8 [out, in] from -8 to 7. `in` is a multiple of 8. They are stored plus 8.

    Returns:
        int32 [out, in / 8].
    """
    nibbles = (values.to(torch.int32) + 8).reshape(len(values), -1, 8)
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (nibbles << shifts).sum(dim=2, dtype=torch.int32)


def convert(source: Path, target: Path, bits: Bits) -> None:
    """Write the checkpoint of `source` to `target`, which is created, one file after another.

    With 8 bits, activations are int8 as well, with a scale for each token, computed at run time
    (W8A8). With 4 bits, they are not quantized (W4A16).
    """
    target.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for file in sorted(source.iterdir()):
        if file.suffix == ".safetensors":
            tensors = _converted(file, bits)
            save_file(tensors, target / file.name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file.name)
        elif file.is_file() and file.name != INDEX:
            shutil.copy(file, target)
    if len(set(weight_map.values())) > 1:
        write_json(target / INDEX, {"metadata": {}, "weight_map": weight_map})
    config = json.loads((source / "config.json").read_text())
    write_json(target / "config.json", {**config, "quantization_config": _description(bits)})


def _converted(file: Path, bits: Bits) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(file, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # `weights` is not a dict
            tensor = weights.get_tensor(name)
            if not name.endswith("_proj.weight"):
                tensors[name] = tensor
                continue
            values, tensors[f"{name}_scale"] = quantize(tensor, bits)
            if bits == 8:
                tensors[name] = values
            else:
                tensors[f"{name}_packed"] = pack(values)
                tensors[f"{name}_shape"] = torch.tensor(tensor.shape)
    return tensors


def _description(bits: Bits) -> dict[str, Any]:
    """Return the description of the quantization for config.json."""
    symmetric = {"num_bits": bits, "type": "int", "symmetric": True}
    group: dict[str, Any] = {"targets": ["Linear"]}
    if bits == 8:
        group["weights"] = {**symmetric, "strategy": "channel", "dynamic": False}
        group["input_activations"] = {**symmetric, "strategy": "token", "dynamic": True}
    else:
        grouped = {"strategy": "group", "group_size": _GROUP_SIZE, "dynamic": False}
        group["weights"] = {**symmetric, **grouped}
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
