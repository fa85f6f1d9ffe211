"""The request bodies of OpenAI's Responses API.

https://platform.openai.com/docs/api-reference/responses defines them. An optional field that is
null is the same as absent. A field that is not declared is rejected with an error that names it.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Raw, Struct, field

from chatrpc.v1.limits import LIMITS
from gateway_http.protocol.decode import decoder
from gateway_http.protocol.field_notes import Accepted, Rejected, http_only, proto_field
from gateway_http.protocol.numbers import Float32, Int32, Int64, UInt32
from gateway_http.protocol.raw_json import RawObject
from gateway_http.protocol.sampling import (
    ChatTemplateKwargs,
    JsonObjectFormat,
    ReasoningEffort,
    TextFormat,
)
from gateway_http.protocol.struct_fields import own_fields

_LEAST_TOKENS = LIMITS["SamplingParams.max_completion_tokens"].minimum

# -- Input -----------------------------------------------------------------------------------------


class ResponsePart(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """A part of a message's content."""

    prompt_cache_breakpoint: Accepted = None


class InputTextPart(ResponsePart, tag="input_text"):
    """Text of the client."""

    text: Annotated[str, proto_field("ContentPart.text")]


class InputImagePart(ResponsePart, tag="input_image"):
    """An image."""

    image_url: Annotated[str | None, proto_field("ImageContent.url")] = None
    file_id: Rejected = None
    detail: Annotated[str | None, proto_field("ImageContent.detail")] = None


class InputFilePart(ResponsePart, tag="input_file"):
    """A file."""

    file_data: Annotated[
        str | None,
        proto_field(
            "FileContent.data", description="The bytes of the file in base64, or in a `data:` URL."
        ),
    ] = None
    file_id: Annotated[str | None, proto_field("FileContent.file_id")] = None
    file_url: Rejected = None
    filename: Annotated[str | None, proto_field("FileContent.filename")] = None
    detail: Accepted = None


class OutputTextPart(ResponsePart, tag="output_text"):
    """Text of the model, as it was returned."""

    text: Annotated[str, proto_field("ContentPart.text")]
    annotations: Accepted = None
    logprobs: Accepted = None
    parsed: Accepted = None  # `parse()` of OpenAI's SDK adds it


class OutputRefusalPart(ResponsePart, tag="refusal"):
    """The text by which the model declined, as it was returned."""

    refusal: Annotated[str, proto_field("ChatMessage.refusal")]


InputPart = InputTextPart | InputImagePart | InputFilePart
MessagePart = InputPart | OutputTextPart | OutputRefusalPart


class InputItem(Struct, tag_field="type", forbid_unknown_fields=True, kw_only=True):
    """An item of the input. Items that the API returned can be sent as they are."""

    id: Accepted = None
    status: Accepted = None


class MessageItem(InputItem, tag="message"):
    """A message. Its `type` may be absent."""

    role: Annotated[
        Literal["user", "assistant", "system", "developer"], proto_field("ChatMessage.role")
    ]
    content: Annotated[
        str | list[MessagePart],
        proto_field("ChatMessage.content", description="A string is one part of text."),
    ]
    phase: Accepted = None


class FunctionCallItem(InputItem, tag="function_call"):
    """A tool call, of a function, that the model made."""

    call_id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    arguments: Annotated[str, proto_field("FunctionCall.arguments_json")]
    caller: Accepted = None
    namespace: Annotated[
        str | None, http_only("The namespace of the tool. Over gRPC it is a part of the name.")
    ] = None
    parsed_arguments: Accepted = None  # `parse()` of OpenAI's SDK adds it


class CustomToolCallItem(InputItem, tag="custom_tool_call"):
    """A call of a custom tool that the model made."""

    call_id: Annotated[str, proto_field("ToolCall.id")]
    name: Annotated[str, proto_field("FunctionCall.name")]
    input: Annotated[
        str,
        proto_field(
            "FunctionCall.arguments_json",
            description="The input of the tool. Over gRPC it is the argument `input`.",
        ),
    ]
    caller: Accepted = None
    namespace: Annotated[
        str | None, http_only("The namespace of the tool. Over gRPC it is a part of the name.")
    ] = None


class CallOutputItem(InputItem):
    """The result of a tool call."""

    call_id: Annotated[str, proto_field("ChatMessage.tool_call_id")]
    output: Annotated[
        str | list[InputPart],
        proto_field("ChatMessage.content", description="The result. A string is one text."),
    ]
    caller: Accepted = None


class FunctionCallOutputItem(CallOutputItem, tag="function_call_output"):
    """The result of a tool call, of a function."""

    name: Accepted = None
    namespace: Accepted = None


class CustomToolCallOutputItem(CallOutputItem, tag="custom_tool_call_output"):
    """The result of a call of a custom tool."""


class SummaryPart(Struct, tag_field="type", tag="summary_text", forbid_unknown_fields=True):
    """A summary of reasoning. This server's summaries are the whole reasoning."""

    text: Annotated[str, proto_field("ChatMessage.reasoning_content")]


class ReasoningPart(Struct, tag_field="type", tag="reasoning_text", forbid_unknown_fields=True):
    """Reasoning."""

    text: Annotated[str, proto_field("ChatMessage.reasoning_content")]


class ReasoningInputItem(InputItem, tag="reasoning"):
    """Reasoning of an earlier turn, as it was returned."""

    summary: Annotated[
        list[SummaryPart], http_only("Read if the item has no other text of the reasoning.")
    ] = field(default_factory=list)
    content: Annotated[list[ReasoningPart] | None, proto_field("ChatMessage.reasoning_content")] = (
        None
    )
    encrypted_content: Annotated[
        str | None,
        http_only(
            "The value that was returned. It takes precedence over the other texts. Values of "
            "other servers are not read."
        ),
    ] = None


class ItemReference(InputItem, tag="item_reference"):
    """A reference to an item of a stored response. Its `type` may be absent."""

    id: Annotated[str, http_only("The id of the item.")]


Item = (
    MessageItem
    | FunctionCallItem
    | CustomToolCallItem
    | FunctionCallOutputItem
    | CustomToolCallOutputItem
    | ReasoningInputItem
    | ItemReference
)

# -- Tools -----------------------------------------------------------------------------------------


class ResponseFunctionTool(
    Struct, tag_field="type", tag="function", forbid_unknown_fields=True, kw_only=True
):
    """A function that the model may call."""

    name: Annotated[str, proto_field("FunctionDefinition.name")]
    description: Annotated[str | None, proto_field("FunctionDefinition.description")] = None
    parameters: Annotated[
        RawObject,
        proto_field(
            "FunctionDefinition.parameters_json_schema",
            description="A JSON Schema for the arguments object. Absent: no parameters.",
        ),
    ] = field(default_factory=Raw)
    strict: Annotated[bool | None, proto_field("FunctionDefinition.strict")] = None
    allowed_callers: Accepted = None
    defer_loading: Annotated[Literal[False] | None, http_only("Rejected if it is true.")] = None
    output_schema: Accepted = None


class CustomTextFormat(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class CustomGrammarFormat(Struct, tag_field="type", tag="grammar", forbid_unknown_fields=True):
    """Text that a grammar generates."""

    syntax: Annotated[Literal["lark", "regex"], http_only("The notation of the grammar.")]
    definition: Annotated[str, http_only("The grammar, or the regular expression.")]


class ResponseCustomTool(
    Struct, tag_field="type", tag="custom", forbid_unknown_fields=True, kw_only=True
):
    """A tool whose input is a text."""

    name: Annotated[str, proto_field("FunctionDefinition.name")]
    description: Annotated[str | None, proto_field("FunctionDefinition.description")] = None
    format: Annotated[
        CustomTextFormat | CustomGrammarFormat | None,
        http_only("The format of the input. Absent: any text."),
    ] = None
    allowed_callers: Accepted = None
    defer_loading: Annotated[Literal[False] | None, http_only("Rejected if it is true.")] = None


CallableTool = ResponseFunctionTool | ResponseCustomTool


class ResponseNamespaceTool(
    Struct, tag_field="type", tag="namespace", forbid_unknown_fields=True, kw_only=True
):
    """Tools under a common name."""

    name: Annotated[
        str, http_only("The name. Over gRPC the names of the functions begin with it and `__`.")
    ]
    description: Annotated[
        str | None, http_only("Over gRPC the descriptions of the functions begin with it.")
    ] = None
    tools: Annotated[list[CallableTool], proto_field("ChatCompletionParams.tools")]


ResponseTool = CallableTool | ResponseNamespaceTool


class FunctionChoice(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The one function that the model must call."""

    name: Annotated[str, proto_field("ToolChoice.function_name")]


class CustomChoice(Struct, tag_field="type", tag="custom", forbid_unknown_fields=True):
    """The one custom tool that the model must call."""

    name: Annotated[str, proto_field("ToolChoice.function_name")]


class AllowedToolsOfResponse(
    Struct, tag_field="type", tag="allowed_tools", forbid_unknown_fields=True
):
    """A choice among some tools of the request."""

    mode: Annotated[Literal["auto", "required"], proto_field("AllowedTools.mode")]
    tools: Annotated[
        list[FunctionChoice | CustomChoice], proto_field("AllowedTools.function_names")
    ]


ResponseToolChoice = (
    Literal["none", "auto", "required"] | FunctionChoice | CustomChoice | AllowedToolsOfResponse
)

# -- Options ---------------------------------------------------------------------------------------


class ResponseJsonSchemaFormat(
    Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True, kw_only=True
):
    """JSON that follows a JSON Schema."""

    name: Annotated[str, proto_field("JsonSchemaFormat.name")]
    description: Annotated[str | None, proto_field("JsonSchemaFormat.description")] = None
    schema: Annotated[RawObject, proto_field("JsonSchemaFormat.schema_json")]
    strict: Annotated[bool | None, proto_field("JsonSchemaFormat.strict")] = None


class TextOptions(Struct, forbid_unknown_fields=True):
    """Options of the text."""

    format: Annotated[
        TextFormat | JsonObjectFormat | ResponseJsonSchemaFormat | None,
        proto_field("ChatCompletionParams.response_format"),
    ] = None
    verbosity: Annotated[
        Literal["low", "medium", "high"] | None, proto_field("ChatCompletionParams.verbosity")
    ] = None


_Summary = Literal["auto", "concise", "detailed"] | None


class ReasoningOptions(Struct, forbid_unknown_fields=True):
    """Options of the reasoning."""

    effort: Annotated[
        ReasoningEffort | None, proto_field("ChatCompletionParams.reasoning_effort")
    ] = None
    summary: Annotated[
        _Summary,
        http_only(
            "With any value the reasoning is returned as a summary, which is the whole of it. "
            "Otherwise it is returned as content of its item."
        ),
    ] = None
    generate_summary: Annotated[_Summary, http_only("The older name of `summary`.")] = None
    context: Accepted = None
    mode: Annotated[Literal["standard"] | None, http_only("Without effect.")] = None


Include = Literal[
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


class ResponseStreamOptions(Struct, forbid_unknown_fields=True):
    """Options of a stream."""

    include_obfuscation: Accepted = None


class ResponsePrompt(Struct, kw_only=True):
    """The parameters that a prompt is made from."""

    input: Annotated[
        str | list[Item] | None,
        proto_field(
            "ChatCompletionParams.messages", description="The input. A string is a user's message."
        ),
    ] = None
    instructions: Annotated[
        str | None, http_only("The first message, of the role `developer`.")
    ] = None
    previous_response_id: Annotated[
        str | None, http_only("The id of a stored response whose conversation the input continues.")
    ] = None
    tools: Annotated[list[ResponseTool] | None, proto_field("ChatCompletionParams.tools")] = None
    tool_choice: Annotated[
        ResponseToolChoice | None, proto_field("ChatCompletionParams.tool_choice")
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, proto_field("ChatCompletionParams.parallel_tool_calls")
    ] = None
    text: Annotated[TextOptions | None, http_only("Options of the text.")] = None
    reasoning: Annotated[ReasoningOptions | None, http_only("Options of the reasoning.")] = None
    truncation: Annotated[
        Literal["disabled"] | None,
        http_only("`disabled` or absent: a conversation that exceeds the context is rejected."),
    ] = None
    conversation: Rejected = None


class UnsupportedResponseParameters(ResponsePrompt, kw_only=True):
    """Parameters of OpenAI's API that are rejected unless they are null."""

    access_programs: Rejected = None
    background_options: Rejected = None
    context_management: Rejected = None
    image: Rejected = None
    moderation: Rejected = None
    prompt: Rejected = None


UNSUPPORTED = (
    "conversation",
    *own_fields(UnsupportedResponseParameters, ResponsePrompt),
)


class ResponsesRequest(UnsupportedResponseParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a response."""

    model: Annotated[str, proto_field("ChatCompletionParams.model")]
    stream: Annotated[bool | None, http_only("Send the response as server-sent events.")] = None
    stream_options: Annotated[ResponseStreamOptions | None, http_only("Options of the stream.")] = (
        None
    )
    include: Annotated[
        list[Include] | None,
        http_only(
            "Further data of the output: `reasoning.encrypted_content` and "
            "`message.output_text.logprobs`. The other values are accepted without effect."
        ),
    ] = None
    max_output_tokens: Annotated[
        Annotated[int, Meta(ge=_LEAST_TOKENS, le=2**32 - 1)] | None,
        proto_field("SamplingParams.max_completion_tokens"),
    ] = None
    top_logprobs: Annotated[
        UInt32 | None,
        proto_field(
            "ChatCompletionParams.top_logprobs",
            description="The number of alternatives to return with each log probability: 0 to 20. "
            "Log probabilities are returned if it is above 0, or if `include` requests them.",
        ),
    ] = None
    temperature: Annotated[Float32 | None, proto_field("SamplingParams.temperature")] = None
    top_p: Annotated[Float32 | None, proto_field("SamplingParams.top_p")] = None
    store: Annotated[
        bool | None,
        http_only("Store the response. Absent: true if the gateway has a store of responses."),
    ] = None
    background: Annotated[bool | None, http_only("Rejected if it is true.")] = None

    # Parameters that OpenAI's API does not have, as in chat completions.
    top_k: Annotated[UInt32 | None, proto_field("SamplingParams.top_k")] = None
    min_p: Annotated[Float32 | None, proto_field("SamplingParams.min_p")] = None
    presence_penalty: Annotated[Float32 | None, proto_field("SamplingParams.presence_penalty")] = (
        None
    )
    frequency_penalty: Annotated[
        Float32 | None, proto_field("SamplingParams.frequency_penalty")
    ] = None
    repetition_penalty: Annotated[
        Float32 | None, proto_field("SamplingParams.repetition_penalty")
    ] = None
    seed: Annotated[Int64 | None, proto_field("SamplingParams.seed")] = None
    stop: Annotated[str | list[str] | None, proto_field("SamplingParams.stop")] = None
    chat_template_kwargs: ChatTemplateKwargs = None
    priority: Annotated[Int32 | None, proto_field("ChatCompletionParams.priority")] = None
    cache_salt: Annotated[str | None, proto_field("ChatCompletionParams.cache_salt")] = None

    # Accepted, without effect on the output.
    metadata: Annotated[dict[str, str] | None, proto_field("ChatCompletionParams.metadata")] = None
    user: Annotated[str | None, proto_field("ChatCompletionParams.user")] = None
    safety_identifier: Annotated[
        str | None, proto_field("ChatCompletionParams.safety_identifier")
    ] = None
    prompt_cache_key: Annotated[
        str | None, proto_field("ChatCompletionParams.prompt_cache_key")
    ] = None
    service_tier: Annotated[str | None, proto_field("ChatCompletionParams.service_tier")] = None
    client_metadata: Accepted = None  # Codex sends it
    max_tool_calls: Accepted = None  # it limits hosted tools, of which there are none
    prompt_cache_options: Accepted = None
    prompt_cache_retention: Accepted = None

    @property
    def request_id(self) -> None:
        """The id of the request, which this API has only in a header."""
        return

    def drop_input(self) -> None:
        """Free the input after it has been converted. The response repeats the other parameters."""
        self.input = None


class InputTokensRequest(ResponsePrompt, forbid_unknown_fields=True, kw_only=True):
    """A conversation whose tokens are counted."""

    model: Annotated[str | None, http_only("The model. Absent: the first model of the server.")] = (
        None
    )
    personality: Rejected = None


_Object = dict[str, Raw]


def with_item_types(content: bytes) -> bytes:
    """Return the body with a `type` in each item of the input.

    It may be absent in messages, which have a role, and in references to items. A body that is not
    as declared is returned unchanged.
    """
    try:
        body = msgspec.json.decode(content, type=_Object)
        items = [
            msgspec.json.decode(item, type=_Object)
            for item in msgspec.json.decode(body.get("input", b"[]"), type=list[Raw])
        ]
    except msgspec.DecodeError:
        return content
    if all("type" in item and bytes(item["type"]) != b"null" for item in items):
        return content
    for item in items:
        if "type" not in item or bytes(item["type"]) == b"null":
            kind = MessageItem if "role" in item or "id" not in item else ItemReference
            item["type"] = Raw(msgspec.json.encode(kind.__struct_config__.tag))
    body["input"] = Raw(msgspec.json.encode(items))
    return msgspec.json.encode(body)


decode_request = decoder(ResponsesRequest, prepare=with_item_types)
decode_input_tokens_request = decoder(InputTokensRequest, prepare=with_item_types)
