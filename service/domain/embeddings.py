"""Embeddings: the request and the result."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.pooling import Truncation


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked request for embeddings.

    Attributes:
        inputs: The inputs, at least one: all texts or all tuples of token ids. None is empty.
        dimensions: Number of dimensions of the embeddings; None means the model's own.
        user: An identifier of the end user; "" if there is none.
        inputs_field: The field of the request that has the inputs, for error messages. That of
            input `i` is `inputs_field[i]`.
        prompt_name: The name of the prompt that is put before each text; None means the model's
            default prompt, if it has one.
        truncation: None means that inputs with too many tokens are rejected.
        normalize: True if each embedding is scaled to the length 1; None means as the model does.
        add_special_tokens: True if texts get the model's own start and end tokens.
    """

    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    dimensions: int | None = None
    user: str = ""
    inputs_field: str = "text_inputs.texts"
    prompt_name: str | None = None
    truncation: Truncation | None = None
    normalize: bool | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The embeddings of the inputs of a request.

    Attributes:
        vectors: One embedding for each input, in their order. Its numbers are finite.
        num_prompt_tokens: Number of tokens of all inputs; 0 if the backend does not count them.
    """

    vectors: Sequence[Sequence[float]]
    num_prompt_tokens: int = 0
