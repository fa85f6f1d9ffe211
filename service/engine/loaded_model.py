"""A model whose weights are in memory, and whose cache is not made yet."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from service.engine.kv_store import KVShape
from service.engine.model_runner import Model

_MAX_LOSS = 700.0  # exp of more is no float


@dataclass(frozen=True, slots=True)
class QuantizationLoss:
    """The mean negative log likelihood of a text's tokens, in nats: `quantized`, by the model as it
    is loaded; `reference`, by the checkpoint's own weights."""

    quantized: float
    reference: float

    @property
    def cost(self) -> float:
        """By how much quantizing raises the loss. Not a number if the quantized one is none."""
        return self.quantized - self.reference

    @property
    def perplexities(self) -> tuple[float, float]:
        """Quantized, and reference."""
        return _perplexity(self.quantized), _perplexity(self.reference)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is needed to size the cache, and the function that makes the cache and the model."""

    kv_shapes: list[KVShape]  # one a layer
    finish: Callable[[int, int, int], Model]  # of num_blocks, block_size, max_model_len
    description: dict[str, str]  # for the log
    quantization_loss: QuantizationLoss | None = None  # None where it was not measured


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, _MAX_LOSS))


def first_line(error: Exception) -> str:
    """The gist of what a library raised, for an error of our own."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
