"""Linear layers of the native decoder in int8."""

import ctypes

from torch import Tensor

from service.engine.decoder.linear import Gate, Prologue, RmsNorm, Weight
from service.engine.grouped_weight import GroupedWeight
from service.engine.native.linear import NativeInt8Linear, PrologueKind, TorchInt8Linear

_GATES = {"silu": PrologueKind.SILU_GATE, "gelu_tanh": PrologueKind.GELU_TANH_GATE}


class QuantizedLinear:
    """A `Linear` with weights and activations in int8. Inputs and outputs are float32.

    Args:
        library: The native kernels; None to use torch's operators.
        weight: [N, K]. A weight in groups is dequantized first.
        bias: [N].
    """

    def __init__(
        self,
        library: ctypes.CDLL | None,
        weight: Weight,
        bias: Tensor | None,
        prologue: Prologue,
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
        if isinstance(weight, GroupedWeight):
            weight = weight.dequantized()
        self._product = (
            TorchInt8Linear(weight, bias, norm)
            if library is None
            else NativeInt8Linear(library, weight, bias, norm)
        )

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._product(x, prologue=self._prologue, eps=self._eps, residual=residual)
