"""Decisions: questions about a conversation whose answers are probabilities of options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from service.domain.chat import Message
from service.domain.engine import EngineTimings


class QuestionKind(Enum):
    """The kinds of questions."""

    PREDICATE = "predicate"
    CHOICE = "choice"
    SCORE = "score"


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a question.

    Attributes:
        text: The text whose probability is that of the option.
        description: The meaning of the option; "" if the request has none.
    """

    text: str
    description: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A checked question. No two of its options have equal texts.

    Attributes:
        instructions: A statement, a question or a property to rate, by the kind.
        options: At least two. Those of a predicate are `True` and `False`.
        options_field: The field of the request that has the options, for error messages.
    """

    kind: QuestionKind
    instructions: str
    options: tuple[Option, ...]
    options_field: str


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """A checked request for decisions."""

    messages: tuple[Message, ...]
    questions: tuple[Question, ...]
    cache_salt: str = ""


class ScoredOption(NamedTuple):
    """The probability of an option among those of its question, and its own log probability.

    `logprob` is the natural logarithm of the probability that the model's response begins with the
    option, and with no longer option.
    """

    probability: float
    logprob: float


class ScoredQuestion(NamedTuple):
    """The options of a question with their probabilities, in the order of the options.

    Attributes:
        num_prompt_tokens: Number of tokens of the question's prompt.
        num_cached_tokens: Number of these that came from the prefix cache when they were computed.
        num_scored_tokens: Number of tokens of options that the model scored.
    """

    options: Sequence[ScoredOption]
    num_prompt_tokens: int
    num_cached_tokens: int
    num_scored_tokens: int


# Receives the progress of a question: its index, the number of tokens of its prompt, and timings
# that count the tokens of its options which have been scored.
NoteProgress = Callable[[int, int, EngineTimings], None]
