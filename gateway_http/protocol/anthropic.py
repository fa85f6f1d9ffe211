"""The request and response bodies, and the events, of Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages defines them. An optional field that is null is the same
as absent. A field that is not declared is rejected with an error that names it.
"""

from typing import Annotated, Literal, get_args

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from chatrpc.v1.limits import LIMITS
from gateway_http.protocol.field_notes import Accepted, Rejected, http_only, proto_field
from gateway_http.protocol.numbers import Float32, UInt32
from gateway_http.protocol.raw_json import RawObject
from gateway_http.protocol.struct_fields import own_fields

_LEAST_TOKENS = LIMITS["SamplingParams.max_completion_tokens"].minimum

# -- Requests --------------------------------------------------------------------------------------


class Block(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A block of a message's content."""

    cache_control: Accepted = None  # every prompt prefix is cached


class TextBlockParam(Block, tag="text"):
    """Text."""

    text: Annotated[str, proto_field("ContentPart.text")]
    citations: Accepted = None


class EncodedSource(Struct, tag_field="type", tag="base64", forbid_unknown_fields=True):
    """The bytes of an image or a document."""

    data: Annotated[bytes, http_only("The bytes in base64.")]
    media_type: Annotated[str, http_only("The media type, such as `image/png`.")]


class UrlSource(Struct, tag_field="type", tag="url", forbid_unknown_fields=True):
    """The URL of an image."""

    url: Annotated[str, proto_field("ImageContent.url")]


class TextSource(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """The text of a document."""

    data: Annotated[str, http_only("The text.")]
    media_type: Annotated[Literal["text/plain"], http_only("Always `text/plain`.")] = "text/plain"


class ImageBlockParam(Block, tag="image"):
    """An image."""

    source: Annotated[EncodedSource | UrlSource, proto_field("ContentPart.image")]


class Citations(Struct, forbid_unknown_fields=True):
    """An option of a document: the output quotes it."""

    enabled: Annotated[bool | None, http_only("Rejected if it is true.")] = None


class DocumentBlockParam(Block, tag="document"):
    """A document. A plain text becomes a part of the prompt, after its title and its context."""

    source: Annotated[EncodedSource | TextSource, proto_field("ContentPart.file")]
    title: Annotated[str | None, http_only("The title.")] = None
    context: Annotated[str | None, http_only("Further facts about the document.")] = None
    citations: Annotated[Citations | None, http_only("Citations are not supported.")] = None


class SearchResultBlockParam(Block, tag="search_result"):
    """A result of a search. It becomes a text of the prompt."""

    source: Annotated[str, http_only("Where the result was found.")]
    title: Annotated[str, http_only("The title.")]
    content: Annotated[list[TextBlockParam], http_only("The texts of the result.")]
    citations: Annotated[Citations | None, http_only("Citations are not supported.")] = None


class ThinkingBlockParam(Block, tag="thinking"):
    """Reasoning of an earlier turn, as it was returned."""

    thinking: Annotated[str, proto_field("ChatMessage.reasoning_content")]
    signature: Annotated[
        str,
        http_only(
            "The signature that was returned with the reasoning. One of this server must belong to "
            "the text. Those of other servers are not checked."
        ),
    ]


class RedactedThinkingBlockParam(Block, tag="redacted_thinking"):
    """Encrypted reasoning of another server. It is left out of the prompt."""

    data: Annotated[str, http_only("Not read.")]


class ToolUseBlockParam(Block, tag="tool_use"):
    """A tool call that the model made."""

    id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    input: Annotated[
        RawObject,
        proto_field("FunctionCall.arguments_json", description="The arguments: a JSON object."),
    ] = field(default_factory=Raw)
    caller: Accepted = None


ToolResultContent = TextBlockParam | ImageBlockParam | DocumentBlockParam | SearchResultBlockParam


class ToolResultBlockParam(Block, tag="tool_result"):
    """The result of a tool call."""

    tool_use_id: Annotated[str, proto_field("ChatMessage.tool_call_id")]
    content: Annotated[
        str | list[ToolResultContent] | None,
        proto_field("ChatMessage.content", description="The result. A string is one text."),
    ] = None
    is_error: Annotated[
        bool | None,
        http_only("If it is true, the result in the prompt begins with the word `Error`."),
    ] = None


ContentBlockParam = (
    TextBlockParam
    | ImageBlockParam
    | DocumentBlockParam
    | SearchResultBlockParam
    | ThinkingBlockParam
    | RedactedThinkingBlockParam
    | ToolUseBlockParam
    | ToolResultBlockParam
)


class MessageParam(Struct, forbid_unknown_fields=True, kw_only=True):
    """A message of a conversation."""

    role: Annotated[Literal["user", "assistant", "system"], proto_field("ChatMessage.role")]
    content: Annotated[
        str | list[ContentBlockParam],
        proto_field("ChatMessage.content", description="A string is one block of text."),
    ]


class ToolParam(Struct, forbid_unknown_fields=True, kw_only=True):
    """A tool that the model may call."""

    name: Annotated[str, proto_field("FunctionDefinition.name")]
    type: Annotated[
        str | None,
        http_only("`custom` or absent. The tools that Anthropic's servers run are rejected."),
    ] = None
    description: Annotated[str | None, proto_field("FunctionDefinition.description")] = None
    input_schema: Annotated[
        RawObject,
        proto_field(
            "FunctionDefinition.parameters_json_schema",
            description="A JSON Schema for the input. Absent: no input.",
        ),
    ] = field(default_factory=Raw)
    strict: Annotated[bool | None, proto_field("FunctionDefinition.strict")] = None
    cache_control: Accepted = None
    eager_input_streaming: Accepted = None
    defer_loading: Annotated[Literal[False] | None, http_only("Rejected if it is true.")] = None
    allowed_callers: Accepted = None
    input_examples: Accepted = None


class AnyToolChoice(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A choice among the tools."""

    disable_parallel_tool_use: Annotated[
        bool | None,
        proto_field(
            "ChatCompletionParams.parallel_tool_calls",
            description="If it is true, the model makes at most one tool call.",
        ),
    ] = None


class ToolChoiceAuto(AnyToolChoice, tag="auto"):
    """The model may call tools."""


class ToolChoiceAny(AnyToolChoice, tag="any"):
    """The model must call a tool."""


class ToolChoiceTool(AnyToolChoice, tag="tool"):
    """The model must call this tool."""

    name: Annotated[str, proto_field("ToolChoice.function_name")]


class ToolChoiceNone(Struct, tag_field="type", tag="none", forbid_unknown_fields=True):
    """The model calls no tool."""


ToolChoice = ToolChoiceAuto | ToolChoiceAny | ToolChoiceTool | ToolChoiceNone

_Display = Annotated[
    Literal["summarized", "omitted"] | None,
    http_only(
        "With `omitted` the reasoning is not returned as text. Its signature contains it, so that "
        "the next turn can have it."
    ),
]


class ThinkingEnabled(Struct, tag_field="type", tag="enabled", forbid_unknown_fields=True):
    """The model reasons before its response."""

    budget_tokens: Annotated[
        Annotated[int, Meta(ge=1)],
        http_only(
            "It chooses the reasoning effort: low up to 4096, medium up to 16384, high above. It "
            "is not a limit: `max_tokens` limits the reasoning and the response together."
        ),
    ]
    display: _Display = None


class ThinkingAdaptive(Struct, tag_field="type", tag="adaptive", forbid_unknown_fields=True):
    """The model decides whether to reason."""

    display: _Display = None


class ThinkingDisabled(Struct, tag_field="type", tag="disabled", forbid_unknown_fields=True):
    """The model does not reason."""


Thinking = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled


class JsonOutputFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """A response that is JSON of a JSON Schema."""

    schema: Annotated[RawObject, proto_field("JsonSchemaFormat.schema_json")]


class OutputConfig(Struct, forbid_unknown_fields=True):
    """Options of the response."""

    effort: Annotated[
        Literal["low", "medium", "high", "xhigh", "max"] | None,
        proto_field("ChatCompletionParams.reasoning_effort"),
    ] = None
    format: Annotated[
        JsonOutputFormat | None, proto_field("ChatCompletionParams.response_format")
    ] = None


class Metadata(Struct, forbid_unknown_fields=True):
    """Facts about the request."""

    user_id: Annotated[str | None, proto_field("ChatCompletionParams.user")] = None


class ContextEdit(Struct):
    """An edit of the conversation before it becomes a prompt. Other fields are not read."""

    type: Annotated[str, http_only("`clear_thinking_20251015`. Other edits are rejected.")]


class ContextManagement(Struct, forbid_unknown_fields=True):
    """Edits of the conversation."""

    edits: Annotated[
        list[ContextEdit],
        http_only("Without effect: the chat template removes the reasoning of earlier turns."),
    ] = field(default_factory=list)


class Prompt(Struct, kw_only=True):
    """The parameters that a prompt is made from."""

    model: Annotated[str, proto_field("ChatCompletionParams.model")]
    messages: Annotated[
        Annotated[list[MessageParam], Meta(min_length=1)],
        proto_field(
            "ChatCompletionParams.messages",
            note="If the last one is the assistant's, without a tool call, the model continues it.",
        ),
    ]
    system: Annotated[
        str | list[TextBlockParam] | None,
        http_only("The first message, of the role `system`. A string is one block of text."),
    ] = None
    tools: Annotated[list[ToolParam] | None, proto_field("ChatCompletionParams.tools")] = None
    tool_choice: Annotated[ToolChoice | None, proto_field("ChatCompletionParams.tool_choice")] = (
        None
    )
    thinking: Annotated[Thinking | None, http_only("Reasoning before the response.")] = None
    output_config: Annotated[OutputConfig | None, http_only("Options of the response.")] = None
    cache_control: Accepted = None
    context_management: Annotated[
        ContextManagement | None, http_only("Edits of the conversation.")
    ] = None
    speed: Annotated[Literal["standard"] | None, http_only("Without effect.")] = None


class UnsupportedMessageParameters(Prompt, kw_only=True):
    """Parameters of Anthropic's API that are rejected unless they are null."""

    container: Rejected = None
    mcp_servers: Rejected = None
    inference_geo: Rejected = None
    fallbacks: Rejected = None
    fallback_credit_token: Rejected = None
    billing_policy: Rejected = None
    compaction: Rejected = None
    thread: Rejected = None
    user_profile_id: Rejected = None


UNSUPPORTED = own_fields(UnsupportedMessageParameters, Prompt)


class MessagesRequest(UnsupportedMessageParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a message."""

    max_tokens: Annotated[
        Annotated[int, Meta(ge=_LEAST_TOKENS, le=2**32 - 1)],
        proto_field("SamplingParams.max_completion_tokens"),
    ]
    temperature: Annotated[Float32 | None, proto_field("SamplingParams.temperature")] = None
    top_p: Annotated[Float32 | None, proto_field("SamplingParams.top_p")] = None
    top_k: Annotated[UInt32 | None, proto_field("SamplingParams.top_k")] = None
    stop_sequences: Annotated[list[str] | None, proto_field("SamplingParams.stop")] = None
    stream: Annotated[bool | None, http_only("Send the response as server-sent events.")] = None
    metadata: Annotated[Metadata | None, http_only("Facts about the request.")] = None
    service_tier: Accepted = None
    diagnostics: Accepted = None

    @property
    def request_id(self) -> None:
        """The id of the request, which this API has only in a header."""
        return

    def drop_input(self) -> None:
        """Free the model's input after it has been converted. No response depends on it."""
        self.messages, self.system, self.tools, self.output_config = [], None, None, None


class CountTokensRequest(Prompt, forbid_unknown_fields=True, kw_only=True):
    """A conversation whose tokens are counted."""


# -- Responses -------------------------------------------------------------------------------------

StopReason = Literal[
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "refusal",
    "model_context_window_exceeded",
]


class TextBlock(Struct, tag_field="type", tag="text"):
    """Text of the response."""

    text: Annotated[str, proto_field("ContentPart.text")]
    citations: Annotated[None, http_only("Always null.")] = None


class ThinkingBlock(Struct, tag_field="type", tag="thinking"):
    """Reasoning of the model."""

    thinking: Annotated[str, proto_field("ChatMessage.reasoning_content")]
    signature: Annotated[
        str, http_only("A value to send back with the reasoning. It is empty in a stream's start.")
    ]


class DirectCaller(Struct, tag_field="type", tag="direct"):
    """The model itself."""


class ToolUseBlock(Struct, tag_field="type", tag="tool_use"):
    """A tool call."""

    id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    input: Annotated[
        RawObject,
        proto_field(
            "FunctionCall.arguments_json",
            description="The arguments. If the output ended within them, the object's only key is "
            "`INVALID_JSON`, and its value their text.",
        ),
    ]
    caller: Annotated[DirectCaller, http_only("A constant.")] = field(default_factory=DirectCaller)


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class OutputTokensDetails(Struct):
    """A part of the output's tokens."""

    thinking_tokens: Annotated[int, proto_field("Usage.reasoning_tokens")]


class MessageUsage(Struct, kw_only=True):
    """Counts of tokens."""

    input_tokens: Annotated[
        int,
        proto_field(
            "Usage.prompt_tokens", description="Tokens of the prompt that were not in the cache."
        ),
    ]
    cache_read_input_tokens: Annotated[int, proto_field("Usage.cached_prompt_tokens")]
    cache_creation: Annotated[None, http_only("Always null.")] = None
    cache_creation_input_tokens: Annotated[
        int, http_only("Always 0: every prompt is cached without a charge.")
    ] = 0
    output_tokens: Annotated[int, proto_field("Usage.completion_tokens")]
    output_tokens_details: Annotated[OutputTokensDetails, http_only("A part of the output.")]
    inference_geo: Annotated[None, http_only("Always null.")] = None
    server_tool_use: Annotated[None, http_only("Always null.")] = None
    service_tier: Annotated[Literal["standard"], http_only("A constant.")] = "standard"


class AssistantMessage(Struct, kw_only=True):
    """The model's message."""

    id: Annotated[str, proto_field("ChatCompletion.id")]
    type: Annotated[Literal["message"], http_only("A constant.")] = "message"
    role: Annotated[Literal["assistant"], http_only("A constant.")] = "assistant"
    model: Annotated[str, proto_field("ChatCompletion.model")]
    content: Annotated[list[ContentBlock], proto_field("Choice.message")]
    stop_reason: Annotated[
        StopReason | None,
        proto_field("Choice.finish_reason", note="Null in a stream's first event."),
    ]
    stop_sequence: Annotated[str | None, proto_field("MatchedStop.text")] = None
    stop_details: Annotated[None, http_only("Always null.")] = None
    container: Annotated[None, http_only("Always null.")] = None
    usage: Annotated[MessageUsage, proto_field("ChatCompletion.usage")]


class TokenCount(Struct):
    """The number of a conversation's tokens."""

    input_tokens: Annotated[
        int, proto_field("TokenizeResponse.token_ids", description="The number of tokens.")
    ]


# -- Events of a stream ----------------------------------------------------------------------------


class MessageStart(Struct, tag_field="type", tag="message_start"):
    """The first event."""

    message: Annotated[AssistantMessage, http_only("The message, still without content.")]


class ContentBlockStart(Struct, tag_field="type", tag="content_block_start"):
    """The start of a block."""

    index: Annotated[int, http_only("The index of the block.")]
    content_block: Annotated[ContentBlock, http_only("The block, still without content.")]


class TextDelta(Struct, tag_field="type", tag="text_delta"):
    """More text."""

    text: Annotated[str, proto_field("Delta.content")]


class ThinkingDelta(Struct, tag_field="type", tag="thinking_delta"):
    """More reasoning."""

    thinking: Annotated[str, proto_field("Delta.reasoning_content")]


class SignatureDelta(Struct, tag_field="type", tag="signature_delta"):
    """The signature of the reasoning, at its end."""

    signature: Annotated[str, http_only("A value to send back with the reasoning.")]


class InputJsonDelta(Struct, tag_field="type", tag="input_json_delta"):
    """More of a tool call's arguments."""

    partial_json: Annotated[str, proto_field("FunctionCall.arguments_json")]


class ContentBlockDelta(Struct, tag_field="type", tag="content_block_delta"):
    """More content of a block."""

    index: Annotated[int, http_only("The index of the block.")]
    delta: Annotated[
        TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta, http_only("The content.")
    ]


class ContentBlockStop(Struct, tag_field="type", tag="content_block_stop"):
    """The end of a block."""

    index: Annotated[int, http_only("The index of the block.")]


class MessageEnd(Struct, kw_only=True):
    """The reason for the end of a message."""

    stop_reason: Annotated[StopReason, proto_field("ChoiceDelta.finish_reason")]
    stop_sequence: Annotated[str | None, proto_field("MatchedStop.text")] = None


class MessageDelta(Struct, tag_field="type", tag="message_delta"):
    """The end of the content."""

    delta: Annotated[MessageEnd, http_only("The reason for the end.")]
    usage: Annotated[MessageUsage, proto_field("ChatCompletionChunk.usage")]


class MessageStop(Struct, tag_field="type", tag="message_stop"):
    """The last event."""


class Ping(Struct, tag_field="type", tag="ping"):
    """An event without content, which keeps the connection open."""


# -- Errors ----------------------------------------------------------------------------------------

ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "request_too_large",
    "rate_limit_error",
    "timeout_error",
    "api_error",
    "overloaded_error",
]


class UnsupportedThread(Struct):
    """Details of the rejection of `thread`. SDKs then send the request again, without a thread."""

    error_code: Annotated[Literal["thread_unsupported_request"], http_only("A constant.")] = (
        "thread_unsupported_request"
    )
    unsupported: Annotated[list[str], http_only("What is not supported: threads.")] = field(
        default_factory=lambda: ["thread"]
    )


class MessagesErrorObject(Struct):
    """An error in Anthropic's form."""

    type: Annotated[ErrorType, http_only("The kind of the error.")]
    message: Annotated[str, http_only("The cause, for people. It names the field, if any.")]
    details: Annotated[
        UnsupportedThread | UnsetType, http_only("Details for programs, if `thread` is rejected.")
    ] = UNSET


class MessagesError(Struct, tag_field="type", tag="error"):
    """The body of every response that is not a success, and of an event that ends a stream."""

    error: Annotated[MessagesErrorObject, http_only("The error.")]
    request_id: Annotated[str | UnsetType, http_only("The id of the request.")] = UNSET


Event = (
    MessageStart
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
)
EVENTS: tuple[type[Struct], ...] = (*get_args(Event), Ping, MessagesError)
