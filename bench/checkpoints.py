"""The checkpoints that peers load: the embedded model, and an int8 one made from it.

This is a separate program, `python -m bench.checkpoints INT8_DIRECTORY`: it needs torch, and the
load generator does not. It prints the directory of each checkpoint.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from service.checkpoint import EMBEDDED_MODEL, resolve
from service.config import ServiceSettings

_WEIGHTS = "model.safetensors"
_MAX = 127

# The description of the quantization in the format of compressed-tensors. Weights are those of
# `quantize`. Activations are int8 as well, with a scale for each token, computed at run time.
_CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "channel",
                "dynamic": False,
            },
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize a weight to int8 with bfloat16 scales. Their product approximates the weight.

    Args:
        weight: [out, in].

    Returns:
        int8 [out, in] and scales [out, 1]. A scale is slightly larger than the row's largest weight
        needs. So no value overflows after rounding the scale to the eight bits of bfloat16, and the
        error of each weight is at most half a scale.
    """
    exact = weight.float()
    largest = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
    scale = (largest / _MAX * (1 + 2**-8)).to(torch.bfloat16)
    return (exact / scale.float()).round().clamp(-_MAX, _MAX).to(torch.int8), scale


def convert(source: Path, target: Path) -> None:
    """Write the W8A8 checkpoint of `source`, a directory with one safetensors file, to `target`.

    Every projection is converted. Embeddings, norms and the head are unchanged.
    """
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(source / _WEIGHTS, framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  # `weights` is not a dict
            tensor = weights.get_tensor(name)
            if name.endswith("_proj.weight"):
                tensors[name], tensors[f"{name}_scale"] = quantize(tensor)
            else:
                tensors[name] = tensor
    for file in source.iterdir():
        if file.is_file() and file.name != _WEIGHTS:
            shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(
        json.dumps({**config, "quantization_config": _CONFIG}, indent=2)
    )
    save_file(tensors, target / _WEIGHTS, metadata={"format": "pt"})


def main(int8: Path) -> None:
    source = resolve(EMBEDDED_MODEL, ServiceSettings.load([]).cache_dir).path
    made_of = int8 / "made_of"
    if not made_of.is_file() or made_of.read_text() != source.name:
        convert(source, int8)
        made_of.write_text(source.name)
    print(json.dumps({"bf16": str(source), "int8": str(int8)}))  # noqa: T201  # the program's result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
