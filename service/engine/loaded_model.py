"""A model whose weights are in memory, and whose cache is not made yet."""

from collections.abc import Callable
from dataclasses import dataclass

from service.engine.kv_store import KVShape
from service.engine.model_runner import Model


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is needed to size the cache, and the function that makes the cache and the model."""

    kv_shapes: list[KVShape]  # one a layer
    finish: Callable[[int, int, int], Model]  # of num_blocks, block_size, max_model_len
    description: dict[str, str]  # for the log


def first_line(error: Exception) -> str:
    """The gist of what a library raised, for an error of our own."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
