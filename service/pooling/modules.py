"""Pooling, and the modules after it, of an embedding model."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from service.errors import ModelLoadError, first_line
from service.pooling.checkpoint import Dense, EmbeddingModules, LayerNorm

_Function = Callable[[Tensor], Tensor]

_ACTIVATIONS: Mapping[str, _Function] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
}


def pool(states: Tensor, modes: Sequence[str], num_skipped: int = 0) -> Tensor:
    """Return one vector for each input, as sentence_transformers' module Pooling does.

    Args:
        states: [size, length, num_dimensions], the hidden states of inputs of equal length.
        modes: See `service.pooling.checkpoint.Pooling`. The tokens of `weightedmean` have the
            weights 1, 2, ...
        num_skipped: Number of tokens at the start that are left out.

    Returns:
        [size, len(modes) * num_dimensions].
    """
    states = states[:, num_skipped:].float()
    pooled = [
        _weighted_mean(states, num_skipped) if mode == "weightedmean" else _POOLS[mode](states)
        for mode in modes
    ]
    return torch.cat(pooled, dim=-1)


def _weighted_mean(states: Tensor, num_skipped: int) -> Tensor:
    first = num_skipped + 1
    weights = torch.arange(first, first + states.shape[1], device=states.device, dtype=states.dtype)
    return (states * weights[:, None]).sum(1) / weights.sum()


_POOLS: Mapping[str, _Function] = {
    "cls": lambda states: states[:, 0],
    "max": lambda states: states.amax(1),
    "mean": lambda states: states.mean(1),
    "mean_sqrt_len_tokens": lambda states: states.sum(1) / states.shape[1] ** 0.5,
    "lasttoken": lambda states: states[:, -1],
}


def load_modules(modules: EmbeddingModules, device: torch.device) -> _Function:
    """Return the modules after pooling as one function of [size, num_dimensions].

    Raises:
        ModelLoadError: The weights of a module cannot be read.
    """
    functions = [_function(module, device) for module in modules.modules]

    def apply(vectors: Tensor) -> Tensor:
        for function in functions:
            vectors = function(vectors)
        return vectors

    return apply


def _function(module: object, device: torch.device) -> _Function:
    if isinstance(module, Dense):
        return _dense(module, device)
    if isinstance(module, LayerNorm):
        weights = _weights(module.directory, device)
        weight = _named(weights, "norm.weight", module.directory)
        bias = _named(weights, "norm.bias", module.directory)
        return lambda x: F.layer_norm(x, weight.shape, weight, bias)
    return lambda x: F.normalize(x, dim=-1)


def _dense(module: Dense, device: torch.device) -> _Function:
    weights = _weights(module.directory, device)
    weight = _named(weights, "linear.weight", module.directory)
    bias = _named(weights, "linear.bias", module.directory) if module.has_bias else None
    activation = _ACTIVATIONS[module.activation]
    residual: Tensor | None = None
    if module.has_residual and weight.shape[0] != weight.shape[1]:
        residual = _named(weights, "residual.weight", module.directory)

    def apply(x: Tensor) -> Tensor:
        output = activation(F.linear(x, weight, bias))
        if not module.has_residual:
            return output
        return output + (x if residual is None else F.linear(x, residual))

    return apply


def _weights(directory: Path, device: torch.device) -> dict[str, Tensor]:
    """Return the weights of a module, in float32 like the pooled vectors."""
    file = directory / "model.safetensors"
    if not file.is_file():
        raise ModelLoadError(f"The module {directory} has no model.safetensors.")
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{file} cannot be read: {first_line(error)}") from error
    return {name: each.to(device, torch.float32) for name, each in weights.items()}


def _named(weights: Mapping[str, Tensor], name: str, directory: Path) -> Tensor:
    if name not in weights:
        raise ModelLoadError(f"The module {directory} has no tensor {name}.")
    return weights[name]
