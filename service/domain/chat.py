"""A chat request: messages, tools, response format."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from service.domain.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call that an assistant message of the conversation made."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation, its text parts joined."""

    role: str  # system, developer, user, assistant or tool
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a conversation becomes a prompt."""

    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False  # the prompt ends inside the last message
    truncate_prompt_tokens: int | None = None  # keep the last so many; None: all
    tools: tuple[dict[str, Any], ...] = ()  # as templates read them: as in OpenAI's API


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; `index` is its place in the request."""

    index: int
    name: str
    description: str
    schema: str  # a JSON schema for the arguments; empty where the request gives none
    is_strict: bool = False


class ToolMode(Enum):
    """Whether an answer calls functions."""

    AUTO = "auto"  # the model decides
    REQUIRED = "required"
    NAMED = "named"  # exactly one call, of the one tool there is


class JsonLayout(Enum):
    """Where generated JSON may have white space."""

    # One space, or a line break and the next line's indentation. Nothing else: a small model that
    # may write blank lines writes nothing else until it runs into its limit.
    FLEXIBLE = "flexible"
    COMPACT = "compact"  # nowhere


class AnswerForm(Enum):
    """The kinds of forms that an answer can be made to take."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The form that an answer must take."""

    form: AnswerForm
    text: str = ""  # the schema, the expression or the grammar
    is_strict: bool = False  # the schema is followed exactly, or rejected
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as the wire asked for it, checked, with the model's defaults filled in.

    `tools` are those that may be called, whatever others the wire held.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    prompt: PromptOptions
    cache_salt: str = ""
    n: int = 1
    num_logprobs: int | None = None  # as in `Request`
    num_prompt_logprobs: int | None = None
    returns_token_ids: bool = False
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = ToolMode.AUTO
    has_parallel_calls: bool = True
    response_format: ResponseFormat | None = None
