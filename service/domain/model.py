"""A served model: its tokenizer, its engine and its formats."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from service.domain.chat import JsonLayout, PromptOptions
from service.domain.engine import Engine
from service.domain.grammar import Grammars
from service.domain.sampling import SamplingParams


class Tokenizer(Protocol):
    """A model's tokenizer. Implementations are safe to call from any thread."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids, including added tokens."""
        ...

    @property
    def max_token_chars(self) -> int:
        """Maximum number of characters that one token stands for."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of a token in the middle of a text.

        They may be a part of a character. The bytes of a special token are its name. An id outside
        the vocabulary has no bytes.
        """
        ...

    def special_token_id(self, text: str) -> int | None:
        """Return the id of the special token with this text; None if there is none."""
        ...

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        """Return the conversation as the model's chat template renders it.

        Raises:
            TemplateRejected: The template rejects the conversation.
        """
        ...


class ToolFormat(Enum):
    """The syntax of a model's tool calls."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"
    GEMMA = "gemma"
    GEMMA4 = "gemma4"
    JSON = "json"


class ReasoningFormat(Enum):
    """The markers around a model's reasoning."""

    NONE = "none"
    THINK = "think"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class ChatFormats:
    """The formats of a model's tool calls and reasoning, and its template's support for tools."""

    tools: ToolFormat = ToolFormat.HERMES
    has_tool_template: bool = False
    reasoning: ReasoningFormat = ReasoningFormat.NONE


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The description of a model that clients receive.

    Attributes:
        created: Unix time in seconds.
        engine: The name of the engine or backend that serves the model.
        quantization: The precision of the weights; see `EngineCapabilities`.
        max_output_tokens: Maximum number of tokens of an output; None if only `max_model_len`
            limits it.
    """

    id: str
    aliases: tuple[str, ...]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    fingerprint: str
    engine: str = ""
    quantization: str = ""
    max_output_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model in this process: its engine, its tokenizer and the formats of its text.

    Attributes:
        path: The directory with config.json and the tokenizer's files; None if there is none.
    """

    card: ModelCard
    tokenizer: Tokenizer
    engine: Engine
    sampling_defaults: SamplingParams
    eos_token_ids: frozenset[int]
    vocab_size: int  # number of ids of the model; a tokenizer may have more
    formats: ChatFormats = ChatFormats()
    grammars: Grammars | None = None  # None if the tokenizer's kind is not supported
    json_layout: JsonLayout = JsonLayout.FLEXIBLE
    path: Path | None = None
