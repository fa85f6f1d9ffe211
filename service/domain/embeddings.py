"""Embeddings: the request and the result."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked request for embeddings.

    Attributes:
        inputs: The inputs, at least one: all texts or all tuples of token ids. None is empty.
        dimensions: Number of dimensions of the embeddings; None means the model's own.
        user: An identifier of the end user; "" if there is none.
        inputs_field: The field of the request that has the inputs, for error messages. That of
            input `i` is `inputs_field[i]`.
    """

    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    user: str = ""
    inputs_field: str = "text_inputs.texts"


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of the inputs of a request.

    Attributes:
        vectors: One embedding for each input, in their order. Its numbers are finite.
        num_prompt_tokens: Number of tokens of all inputs; 0 if the backend does not count them.
    """

    vectors: Sequence[Sequence[float]]
    num_prompt_tokens: int = 0
