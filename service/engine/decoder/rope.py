"""Rotary position embeddings: RoFormer (arXiv 2104.09864), in transformers' half-split layout.

The frequencies of scaled variants are computed by transformers' functions.
"""

from typing import Any

import torch
from torch import Tensor

from service.engine.decoder.architecture import Architecture

# The types whose frequencies are fixed at load. The frequencies of the type "dynamic" depend on the
# sequence length.
SERVED = {"default", "linear", "llama3", "yarn", "longrope"}


class Rope:
    """Tables of cosines and sines for the positions 0 to `max_model_len` - 1.

    Args:
        frequencies: [pairs], the angle per position of each pair of dimensions.
        scale: Factor of cosines and sines.
    """

    def __init__(self, frequencies: Tensor, scale: float, max_model_len: int) -> None:
        positions = torch.arange(max_model_len, device=frequencies.device, dtype=torch.float32)
        angles = torch.outer(positions, frequencies)
        self._cos, self._sin = angles.cos() * scale, angles.sin() * scale

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and the sines at `positions` [T]: each is [T, pairs], float32."""
        return self._cos[positions], self._sin[positions]


def is_served(config: Any) -> bool:
    """Return True if every rotary embedding of a config has fixed frequencies."""
    return all(scope["rope_type"] in SERVED for scope in _scopes(config).values())


def make_ropes(
    config: Any, architecture: Architecture, max_model_len: int, device: torch.device
) -> dict[str, Rope]:
    """Return the rotary embedding for each name that the architecture's layers use."""
    used = {layer.rope for layer in architecture.layers} - {None}
    ropes = {}
    for name, scope in _scopes(config).items():
        if name not in used:
            continue
        if scope["rope_type"] == "default":
            frequencies, scale = _default(scope, architecture.head_dim), 1.0
        else:
            values, scale = config.rope_frequencies[name]
            frequencies = torch.tensor(values)
        ropes[name] = Rope(frequencies.to(device, torch.float32), scale, max_model_len)
    return ropes


def _scopes(config: Any) -> dict[str, Any]:
    """Return the parameters of each rotary embedding by layer kind; "" if all layers share one."""
    parameters = config.rope_parameters
    return {"": parameters} if "rope_type" in parameters else parameters


def _default(scope: Any, head_dim: int) -> Tensor:
    num_rotated = int(head_dim * scope.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, num_rotated, 2, dtype=torch.float32) / num_rotated
    base: float = scope["rope_theta"]
    return 1.0 / torch.pow(base, exponents)
