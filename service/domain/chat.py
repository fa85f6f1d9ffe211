"""A chat completion request: messages, tools, response format."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from service.domain.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an assistant message of the conversation."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image in a message.

    Attributes:
        url: An URL, or a `data:` URL with the bytes of the image.
        detail: The resolution to read it in: low, high or auto; "" is the model's default.
    """

    url: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a conversation.

    Attributes:
        role: system, developer, user, assistant or tool.
        content: The text parts, joined; None if the message has none.
        parts: The texts and images in order, if the message has an image. Otherwise it is empty.
    """

    role: str
    content: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    parts: tuple[str | Image, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """Options for rendering a conversation to a prompt.

    Attributes:
        template_kwargs: Variables for the chat template, those of the reasoning effort included.
        reasoning_effort: The request's reasoning effort, such as `high`; "" if it sets none.
        continue_final_message: True if the output continues the last message.
        truncate_prompt_tokens: Number of tokens to keep of the prompt's end; None keeps all.
        tools: The tools as chat templates read them: dicts as in OpenAI's API.
    """

    template_kwargs: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    truncate_prompt_tokens: int | None = None
    tools: tuple[dict[str, Any], ...] = ()
    reasoning_effort: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Attributes:
        schema: A JSON schema of the arguments; "" if the request has none.
        is_strict: True if the arguments must follow the schema exactly.
        schema_field: The field of the request that has the schema, for error messages.
    """

    name: str
    description: str
    schema: str
    is_strict: bool = False
    schema_field: str = ""


class ToolMode(Enum):
    """The tool calls that an output must or may have."""

    AUTO = "auto"  # the model decides
    REQUIRED = "required"
    NAMED = "named"  # exactly one call, of the only tool


class JsonLayout(Enum):
    """The white space that generated JSON may have."""

    # Between tokens there may be one space, or one line break and the indentation of the next line.
    # Blank lines are not allowed: a small model would write them until it reaches its limit.
    FLEXIBLE = "flexible"
    COMPACT = "compact"  # no white space


class ResponseFormatKind(Enum):
    """The kinds of response formats."""

    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"
    CHOICE = "choice"


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """The format that the content of an output must have.

    Attributes:
        text: The schema, the regular expression or the grammar.
        is_strict: True if the schema must be enforced exactly, or rejected.
        field: The field of the request that has the format, for error messages.
        name: The name of the schema.
        description: A description of the schema.
    """

    kind: ResponseFormatKind
    text: str = ""
    is_strict: bool = False
    choices: tuple[str, ...] = ()
    field: str = ""
    name: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked chat completion request, with the model's defaults filled in.

    Attributes:
        n: Number of choices.
        num_logprobs: See `service.domain.engine.Request`.
        num_prompt_logprobs: See `service.domain.engine.Request`.
        tools: The tools that may be called; the request may have had more.
        messages_field: The field of the request that has the messages, for error messages.
    """

    model: str
    messages: tuple[Message, ...]
    sampling: SamplingParams
    prompt: PromptOptions
    cache_salt: str = ""
    n: int = 1
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    returns_token_ids: bool = False
    tools: tuple[Tool, ...] = ()
    tool_mode: ToolMode = ToolMode.AUTO
    has_parallel_calls: bool = True
    response_format: ResponseFormat | None = None
    messages_field: str = "messages"
