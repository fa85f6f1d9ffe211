"""Linear layers of the native decoder with activations in int8."""

import ctypes
from typing import Literal

from torch import Tensor

from service.engine.decoder.linear import Gate, Prologue, RmsNorm
from service.engine.native.int4 import NativeInt4Linear, can_pack
from service.engine.native.linear import (
    Int8Linear,
    NativeInt8Linear,
    PrologueKind,
    TorchInt8Linear,
)
from service.engine.weight import Weight

_GATES = {"silu": PrologueKind.SILU_GATE, "gelu_tanh": PrologueKind.GELU_TANH_GATE}


class QuantizedLinear:
    """A `Linear` with weights in 8 or 4 bits and activations in int8.

    Inputs and outputs are float32.

    Args:
        library: The native kernels; None to use torch's operators, with every weight in int8.
        weight: [N, K]. A weight of 4 bits in groups keeps its values if there are native kernels.
            Any other one in groups is quantized to int8.
        bias: [N].
        bits: Size of a float weight's values with native kernels.
    """

    def __init__(
        self,
        library: ctypes.CDLL | None,
        weight: Weight,
        bias: Tensor | None,
        prologue: Prologue,
        *,
        bits: Literal[4, 8] = 8,
    ) -> None:
        self._prologue = PrologueKind.NONE
        self._eps = 0.0
        norm = None
        match prologue:
            case RmsNorm():
                self._prologue = PrologueKind.RMS_NORM
                self._eps = prologue.eps
                norm = prologue.weight
            case Gate():
                self._prologue = _GATES[prologue.activation]
        self._product = _product(library, weight, bias, norm, bits)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._product(x, prologue=self._prologue, eps=self._eps, residual=residual)


def _product(
    library: ctypes.CDLL | None,
    weight: Weight,
    bias: Tensor | None,
    norm: Tensor | None,
    bits: Literal[4, 8],
) -> Int8Linear:
    if library is None:
        return TorchInt8Linear(weight, bias, norm)
    is_int4 = bits == 4 if isinstance(weight, Tensor) else can_pack(weight)
    make = NativeInt4Linear if is_int4 else NativeInt8Linear
    return make(library, weight, bias, norm)
