"""The response bodies and the events of OpenAI's Responses API.

https://platform.openai.com/docs/api-reference/responses and .../responses-streaming define them.
"""

from typing import Annotated, Literal, get_args

from msgspec import UNSET, Struct, UnsetType

from gateway_http.protocol.field_notes import http_only, proto_field
from gateway_http.protocol.raw_json import RawObject
from gateway_http.protocol.response import TokenLogprob
from gateway_http.protocol.responses_request import (
    ReasoningOptions,
    ReasoningPart,
    ResponseTool,
    ResponseToolChoice,
    SummaryPart,
    TextOptions,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = Literal["in_progress", "completed", "incomplete", "failed"]
ErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]

_ItemId = Annotated[str, http_only("The id of the item.")]
_Namespace = Annotated[str | UnsetType, http_only("The namespace of the tool, if it has one.")]
_Status = Annotated[ItemStatus, http_only("`incomplete` if the output ended within the item.")]

# -- Items -----------------------------------------------------------------------------------------


class OutputText(Struct, tag_field="type", tag="output_text", kw_only=True):
    """Text of the response."""

    text: Annotated[str, proto_field("ContentPart.text")]
    annotations: Annotated[tuple[()], http_only("Always empty.")] = ()
    logprobs: Annotated[list[TokenLogprob], proto_field("Choice.logprobs", "ChoiceDelta.logprobs")]


class OutputRefusal(Struct, tag_field="type", tag="refusal"):
    """The text by which the model declined."""

    refusal: Annotated[str, proto_field("ChatMessage.refusal")]


class OutputMessage(Struct, tag_field="type", tag="message", kw_only=True):
    """A message of the model."""

    id: _ItemId
    status: _Status
    role: Annotated[Literal["assistant"], http_only("A constant.")] = "assistant"
    content: Annotated[list[OutputText | OutputRefusal], proto_field("ChatMessage.content")]


class ReasoningOutput(Struct, tag_field="type", tag="reasoning", kw_only=True):
    """Reasoning of the model."""

    id: _ItemId
    status: _Status
    summary: Annotated[
        list[SummaryPart], http_only("The reasoning, if `reasoning.summary` requests it here.")
    ]
    content: Annotated[
        list[ReasoningPart] | UnsetType,
        proto_field(
            "ChatMessage.reasoning_content",
            description="The reasoning, unless it is in `summary`.",
        ),
    ] = UNSET
    encrypted_content: Annotated[
        str | UnsetType,
        http_only(
            "If `include` requests it: a value to send back, which contains the reasoning, "
            "compressed but not encrypted. It is empty until the item is complete."
        ),
    ] = UNSET


class FunctionToolCall(Struct, tag_field="type", tag="function_call", kw_only=True):
    """A tool call: a function with its arguments."""

    id: _ItemId
    status: _Status
    call_id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    arguments: Annotated[str, proto_field("FunctionCall.arguments_json")]
    namespace: _Namespace = UNSET


class CustomToolCall(Struct, tag_field="type", tag="custom_tool_call", kw_only=True):
    """A call of a custom tool."""

    id: _ItemId
    status: _Status
    call_id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    input: Annotated[
        str,
        proto_field(
            "FunctionCall.arguments_json",
            description="The input of the tool. Over gRPC it is the argument `input`.",
        ),
    ]
    namespace: _Namespace = UNSET


OutputItem = OutputMessage | ReasoningOutput | FunctionToolCall | CustomToolCall

# -- Responses -------------------------------------------------------------------------------------


class IncompleteDetails(Struct):
    """The reason why a response is incomplete."""

    reason: Annotated[
        Literal["max_output_tokens", "content_filter"], proto_field("Choice.finish_reason")
    ]


class ResponseError(Struct):
    """The error of a failed response."""

    code: Annotated[ErrorCode, http_only("The cause, for programs.")]
    message: Annotated[str, http_only("The cause, for people.")]


class InputTokensDetails(Struct):
    """Parts of `input_tokens`."""

    cached_tokens: Annotated[int, proto_field("Usage.cached_prompt_tokens")]
    cache_write_tokens: Annotated[
        int, http_only("Always 0: every prompt is cached without a charge.")
    ] = 0


class ResponseOutputTokensDetails(Struct):
    """Parts of `output_tokens`."""

    reasoning_tokens: Annotated[int, proto_field("Usage.reasoning_tokens")]


class ResponseUsage(Struct):
    """Counts of tokens."""

    input_tokens: Annotated[int, proto_field("Usage.prompt_tokens")]
    input_tokens_details: Annotated[InputTokensDetails, http_only("Parts of the input.")]
    output_tokens: Annotated[int, proto_field("Usage.completion_tokens")]
    output_tokens_details: Annotated[ResponseOutputTokensDetails, http_only("Parts of the output.")]
    total_tokens: Annotated[int, http_only("The sum of input and output.")]


_RequestedOrOne = Annotated[
    float, http_only("As in the request. If absent: 1, and the model's default is used.")
]


class ResponseObject(Struct, kw_only=True):
    """A response. Most fields repeat the parameters of the request."""

    id: Annotated[str, http_only("The id of the response.")]
    object: Annotated[Literal["response"], http_only("A constant.")] = "response"
    created_at: Annotated[int, proto_field("ChatCompletion.create_time")]
    status: Annotated[
        ResponseStatus,
        http_only("`incomplete` if a limit or a filter ended the output; see the details."),
    ]
    completed_at: Annotated[
        int | None, http_only("The time at which a completed response ended.")
    ] = None
    error: Annotated[ResponseError | None, http_only("The error, if the response failed.")] = None
    incomplete_details: Annotated[
        IncompleteDetails | None, http_only("The reason, if the response is incomplete.")
    ] = None
    model: Annotated[str, proto_field("ChatCompletion.model")]
    output: Annotated[list[OutputItem], proto_field("Choice.message")]
    usage: Annotated[
        ResponseUsage | None,
        proto_field("ChatCompletion.usage", note="Null until the end of a stream."),
    ] = None
    background: Annotated[Literal[False], http_only("A constant.")] = False
    instructions: Annotated[str | None, http_only("As in the request.")]
    max_output_tokens: Annotated[int | None, http_only("As in the request.")]
    max_tool_calls: Annotated[None, http_only("Always null.")] = None
    frequency_penalty: Annotated[float, http_only("As in the request. If absent: 0.")]
    metadata: Annotated[dict[str, str], http_only("As in the request.")]
    parallel_tool_calls: Annotated[bool, http_only("As in the request.")]
    presence_penalty: Annotated[float, http_only("As in the request. If absent: 0.")]
    previous_response_id: Annotated[str | None, http_only("As in the request.")]
    prompt_cache_key: Annotated[str | None, http_only("As in the request.")]
    reasoning: Annotated[ReasoningOptions, http_only("As in the request.")]
    safety_identifier: Annotated[str | None, http_only("As in the request.")]
    service_tier: Annotated[Literal["default"], http_only("A constant.")] = "default"
    store: Annotated[bool, http_only("True if the response is stored.")]
    temperature: _RequestedOrOne
    text: Annotated[TextOptions, http_only("As in the request.")]
    tool_choice: Annotated[ResponseToolChoice, http_only("As in the request.")]
    tools: Annotated[list[ResponseTool], http_only("As in the request.")]
    top_logprobs: Annotated[int, http_only("As in the request.")]
    top_p: _RequestedOrOne
    truncation: Annotated[Literal["disabled"], http_only("A constant.")] = "disabled"
    user: Annotated[str | None, http_only("As in the request.")]


class InputTokenCount(Struct):
    """The number of a conversation's tokens."""

    input_tokens: Annotated[
        int, proto_field("TokenizeResponse.token_ids", description="The number of tokens.")
    ]
    object: Annotated[Literal["response.input_tokens"], http_only("A constant.")] = (
        "response.input_tokens"
    )


class DeletedResponse(Struct):
    """A response that was deleted."""

    id: Annotated[str, http_only("The id of the response.")]
    object: Annotated[Literal["response"], http_only("A constant.")] = "response"
    deleted: Annotated[Literal[True], http_only("A constant.")] = True


class ItemPage(Struct, kw_only=True):
    """A page of the items that a response was generated from."""

    object: Annotated[Literal["list"], http_only("A constant.")] = "list"
    data: Annotated[list[RawObject], http_only("The items.")]
    first_id: Annotated[str | None, http_only("The id of the first item.")]
    last_id: Annotated[str | None, http_only("The id of the last item.")]
    has_more: Annotated[bool, http_only("True if there are items after these.")]


# -- Events of a stream ----------------------------------------------------------------------------


class ResponseEvent(Struct, tag_field="type", kw_only=True):
    """An event of a stream."""

    sequence_number: Annotated[int, http_only("The number of the event, from 0 on.")] = 0


class _OfResponse(ResponseEvent):
    response: Annotated[ResponseObject, http_only("The response at this time.")]


class ResponseCreated(_OfResponse, tag="response.created"):
    """The first event."""


class ResponseInProgress(_OfResponse, tag="response.in_progress"):
    """The response has begun."""


class ResponseCompleted(_OfResponse, tag="response.completed"):
    """The last event of a completed response."""


class ResponseIncomplete(_OfResponse, tag="response.incomplete"):
    """The last event of an incomplete response."""


class ResponseFailed(_OfResponse, tag="response.failed"):
    """The last event of a failed response."""


class StreamError(ResponseEvent, tag="error"):
    """The last event of a stream that failed before its response began."""

    code: Annotated[str | None, http_only("The cause, for programs.")]
    message: Annotated[str, http_only("The cause, for people.")]
    param: Annotated[str | None, http_only("The path of the field that caused it.")]


class _OfItem(ResponseEvent):
    output_index: Annotated[int, http_only("The index of the item.")]


class _WholeItem(_OfItem):
    item: Annotated[OutputItem, http_only("The item at this time.")]


class OutputItemAdded(_WholeItem, tag="response.output_item.added"):
    """The start of an item."""


class OutputItemDone(_WholeItem, tag="response.output_item.done"):
    """The end of an item."""


class _InItem(_OfItem):
    item_id: _ItemId


class _InContent(_InItem):
    content_index: Annotated[int, http_only("The index of the part.")]


class _InSummary(_InItem):
    summary_index: Annotated[int, http_only("The index of the part.")]


ContentPart = OutputText | OutputRefusal | ReasoningPart


class _WholePart(_InContent):
    part: Annotated[ContentPart, http_only("The part at this time.")]


class ContentPartAdded(_WholePart, tag="response.content_part.added"):
    """The start of a part."""


class ContentPartDone(_WholePart, tag="response.content_part.done"):
    """The end of a part."""


class OutputTextDelta(_InContent, tag="response.output_text.delta"):
    """More text."""

    delta: Annotated[str, proto_field("Delta.content")]
    logprobs: Annotated[list[TokenLogprob], proto_field("ChoiceDelta.logprobs")]


class OutputTextDone(_InContent, tag="response.output_text.done"):
    """The whole text."""

    text: Annotated[str, proto_field("ContentPart.text")]
    logprobs: Annotated[list[TokenLogprob], proto_field("Choice.logprobs")]


class RefusalDelta(_InContent, tag="response.refusal.delta"):
    """More of a refusal."""

    delta: Annotated[str, proto_field("Delta.refusal")]


class RefusalDone(_InContent, tag="response.refusal.done"):
    """The whole refusal."""

    refusal: Annotated[str, proto_field("ChatMessage.refusal")]


class ReasoningTextDelta(_InContent, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: Annotated[str, proto_field("Delta.reasoning_content")]


class ReasoningTextDone(_InContent, tag="response.reasoning_text.done"):
    """The whole reasoning."""

    text: Annotated[str, proto_field("ChatMessage.reasoning_content")]


class _SummaryPart(_InSummary):
    part: Annotated[SummaryPart, http_only("The part at this time.")]


class ReasoningSummaryPartAdded(_SummaryPart, tag="response.reasoning_summary_part.added"):
    """The start of a summary."""


class ReasoningSummaryPartDone(_SummaryPart, tag="response.reasoning_summary_part.done"):
    """The end of a summary."""


class ReasoningSummaryTextDelta(_InSummary, tag="response.reasoning_summary_text.delta"):
    """More of a summary."""

    delta: Annotated[str, proto_field("Delta.reasoning_content")]


class ReasoningSummaryTextDone(_InSummary, tag="response.reasoning_summary_text.done"):
    """The whole summary."""

    text: Annotated[str, proto_field("ChatMessage.reasoning_content")]


class FunctionCallArgumentsDelta(_InItem, tag="response.function_call_arguments.delta"):
    """More of a tool call's arguments."""

    delta: Annotated[str, proto_field("FunctionCall.arguments_json")]


class FunctionCallArgumentsDone(_InItem, tag="response.function_call_arguments.done"):
    """The whole arguments of a tool call."""

    name: Annotated[str, proto_field("FunctionCall.name")]
    arguments: Annotated[str, proto_field("FunctionCall.arguments_json")]


class CustomToolCallInputDelta(_InItem, tag="response.custom_tool_call_input.delta"):
    """More of a custom tool's input."""

    delta: Annotated[str, http_only("The text.")]


class CustomToolCallInputDone(_InItem, tag="response.custom_tool_call_input.done"):
    """The whole input of a custom tool."""

    input: Annotated[str, http_only("The text.")]


ResponseEnd = ResponseCompleted | ResponseIncomplete
"""The last events of a stream that did not fail."""

Event = (
    ResponseCreated
    | ResponseInProgress
    | OutputItemAdded
    | ContentPartAdded
    | OutputTextDelta
    | OutputTextDone
    | RefusalDelta
    | RefusalDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | ReasoningSummaryPartAdded
    | ReasoningSummaryTextDelta
    | ReasoningSummaryTextDone
    | ReasoningSummaryPartDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
    | CustomToolCallInputDelta
    | CustomToolCallInputDone
    | ContentPartDone
    | OutputItemDone
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | StreamError
)
EVENTS: tuple[type[Struct], ...] = get_args(Event)
