"""Linear layers of the native decoder, each with its norm or gate, bias and residual."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.decoder.architecture import Activation
from service.engine.weight import Weight, concatenate


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """RMS norm (arXiv 1910.07467) of an input [T, K]. `weight` is [K]."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate of a gated MLP (GLU, arXiv 2002.05202).

    The input is [T, 2 K], gate and up side by side; the output is activation(gate) * up, [T, K].
    """

    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        gate = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        return gate * up


Prologue = RmsNorm | Gate | None


class Linear(Protocol):
    """A linear layer: y = prologue(x) @ weight.T + bias + residual."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Return y [T, N].

        Args:
            x: [T, K]; [T, 2 K] if the prologue is a gate.
            residual: [T, N]; None for zeros.
        """
        ...


class MakeLinear(Protocol):
    """Makes a linear layer from a weight [N, K] and a bias [N]."""

    def __call__(self, weight: Weight, bias: Tensor | None, prologue: Prologue) -> Linear: ...


class FloatLinear:
    """A `Linear` in the precision of its weight; in float32 if the weight is in groups."""

    def __init__(self, weight: Weight, bias: Tensor | None, prologue: Prologue) -> None:
        self._weight = weight if isinstance(weight, Tensor) else weight.dequantized()
        self._bias = bias
        self._prologue = prologue

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._prologue is not None:
            x = self._prologue(x)
        y = F.linear(x, self._weight, self._bias)
        return y if residual is None else residual + y


class JoinedLinear:
    """A `Linear` whose output is the outputs of several ones with the same input, side by side."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self._parts = parts

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = torch.cat([part(x) for part in self._parts], dim=1)
        return y if residual is None else residual + y


def make_joined(
    make_linear: MakeLinear, weights: Sequence[Weight], bias: Tensor | None, prologue: Prologue
) -> Linear:
    """Make one linear layer of several weights [N_i, K]. Its output has their outputs in order.

    Args:
        bias: [sum of N_i].
    """
    whole = concatenate(weights)
    if whole is not None:
        return make_linear(whole, bias, prologue)
    # For example, files in Q4_K_M have 4 bits for q and k, and 6 bits for v in every second layer.
    sizes = [weight.shape[0] for weight in weights]
    biases = [None] * len(weights) if bias is None else torch.split(bias, sizes)
    return JoinedLinear([make_linear(w, b, prologue) for w, b in zip(weights, biases, strict=True)])
