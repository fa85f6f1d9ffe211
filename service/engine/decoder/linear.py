"""Linear layers of the native decoder, each with its norm or gate, bias and residual."""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from service.engine.decoder.architecture import Activation


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

    def __call__(self, weight: Tensor, bias: Tensor | None, prologue: Prologue) -> Linear: ...


class FloatLinear:
    """A `Linear` in the precision of its weight."""

    def __init__(self, weight: Tensor, bias: Tensor | None, prologue: Prologue) -> None:
        self._weight = weight
        self._bias = bias
        self._prologue = prologue

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self._prologue is not None:
            x = self._prologue(x)
        y = F.linear(x, self._weight, self._bias)
        return y if residual is None else residual + y
