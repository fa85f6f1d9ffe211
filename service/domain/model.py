"""A served model: its tokenizer, its engine, its formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from service.domain.chat import JsonLayout, PromptOptions
from service.domain.engine import Engine
from service.domain.grammar import Grammars
from service.domain.sampling import SamplingParams


class Tokenizer(Protocol):
    """What this service needs of a tokenizer. Implementations are safe to call from any thread."""

    @property
    def vocab_size(self) -> int:
        """The number of token ids, added tokens included."""
        ...

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of a text than this."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in the middle of a text: pieces of UTF-8, whole or not.

        Of a special token it is its name. An id outside the vocabulary has no bytes.
        """
        ...

    def special_token_id(self, text: str) -> int | None:
        """The id of the special token written so; None if there is none."""
        ...

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """The conversation through the model's chat template.

        Raises:
            TemplateRejected: the template refuses the conversation.
        """
        ...


class ToolFormat(Enum):
    """How a model writes calls of functions."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"
    GEMMA = "gemma"
    GEMMA4 = "gemma4"
    JSON = "json"


class ReasoningFormat(Enum):
    """How a model marks what it thinks before it answers."""

    NONE = "none"
    THINK = "think"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class ChatFormats:
    """What a model writes beside plain text, and whether its template shows it tools."""

    tools: ToolFormat = ToolFormat.HERMES
    has_tool_template: bool = False
    reasoning: ReasoningFormat = ReasoningFormat.NONE


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What the service says about a model."""

    id: str
    aliases: tuple[str, ...]
    created: int  # Unix time, seconds
    owned_by: str
    root: str
    max_model_len: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model in this process: its engine and how its text is written and read."""

    card: ModelCard
    tokenizer: Tokenizer
    engine: Engine
    sampling_defaults: SamplingParams
    eos_token_ids: frozenset[int]
    vocab_size: int  # of the model: tokenizers may have more tokens than it knows
    formats: ChatFormats = ChatFormats()
    grammars: Grammars | None = None  # None: the tokenizer is of a kind that has none
    json_layout: JsonLayout = JsonLayout.FLEXIBLE
