"""Linear layers with what comes before them and after them: norm or gate, bias, residual.

`Linear` is the interface; how the product is computed is the affair of each implementation.
"""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from service.engine.decoder.architecture import Activation


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """RMS norm (arXiv 1910.07467) of the input: `weight` [K]."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate of a gated MLP (GLU, arXiv 2002.05202): activation(gate) * up of [T, gate | up]."""

    activation: Activation

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        gate = F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")
        return gate * up


Prologue = RmsNorm | Gate | None


class Linear(Protocol):
    """y = prologue(x) @ weight.T + bias + residual."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[T, N] of `x` [T, K], or [T, 2 K] where the prologue is a gate; `residual` is [T, N]."""
        ...


class MakeLinear(Protocol):
    """Makes a linear layer of a weight [N, K] and a bias [N]."""

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
