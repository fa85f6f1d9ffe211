"""Models that do not generate: embeddings, classification, and scores of pairs of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias


class Task(Enum):
    """The tasks of models."""

    GENERATE = "generate"
    EMBED = "embed"
    CLASSIFY = "classify"
    SCORE = "score"


class Activation(Enum):
    """The function that turns the numbers of a classifier's head into scores."""

    MODEL = "model"  # the function that the checkpoint names
    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@dataclass(frozen=True, slots=True)
class Truncation:
    """The shortening of inputs that have too many tokens.

    Attributes:
        side: The side at which tokens are removed.
        max_tokens: Maximum number of tokens of an input, with its special tokens; None means the
            model's own.
    """

    side: Literal["left", "right"] = "right"
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that a model reads together. Neither is empty."""

    query: str
    document: str


Inputs: TypeAlias = tuple[str, ...] | tuple[tuple[int, ...], ...] | tuple[TextPair, ...]


@dataclass(frozen=True, slots=True)
class ClassificationRequest:
    """A checked request for a classification.

    Attributes:
        inputs: The inputs, at least one: all texts, all tuples of token ids or all pairs.
        inputs_field: The field of the request that has the inputs, for error messages. That of
            input `i` is `inputs_field[i]`.
        truncation: None means that inputs with too many tokens are rejected.
    """

    inputs: Inputs
    inputs_field: str
    activation: Activation = Activation.MODEL
    truncation: Truncation | None = None
    add_special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Classifications:
    """The scores of all labels, one sequence for each input, in the order of the labels."""

    scores: Sequence[Sequence[float]]
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A checked request for the scores of pairs.

    Attributes:
        inputs_field: The field of the request that has the pairs, for error messages. That of pair
            `i` is `inputs_field[i]`.
        max_tokens_per_document: Only this many tokens at the start of each document are used; None
            means all.
        truncation: None means that pairs with too many tokens are rejected.
    """

    pairs: tuple[TextPair, ...]
    inputs_field: str
    activation: Activation = Activation.MODEL
    truncation: Truncation | None = None
    max_tokens_per_document: int | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """The score of each pair."""

    scores: Sequence[float]
    num_prompt_tokens: int
