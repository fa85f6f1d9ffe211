"""The response bodies of chat completions and models.

A key of type `| None` is always sent, since strict clients require it. A key of type `| UnsetType`
is sent only if it has a value.
"""

from typing import Annotated, Literal

from msgspec import UNSET, Struct, UnsetType

from gateway_http.protocol.field_notes import http_only, note, proto_field

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

_Logprob = Annotated[float, note("At least -9999, since JSON has no infinity.")]
_TokenBytes = Annotated[list[int], proto_field("TokenLogprob.token_bytes")]


class TopLogprob(Struct):
    """A token that is one of the most likely at its position."""

    token: str
    logprob: _Logprob
    bytes: _TokenBytes


class TokenLogprob(Struct):
    """A token of the output and its log probability."""

    token: str
    logprob: _Logprob
    bytes: _TokenBytes
    top_logprobs: Annotated[list[TopLogprob], proto_field("TokenLogprob.top")]


class Logprobs(Struct):
    """The log probabilities of a choice."""

    content: Annotated[list[TokenLogprob], proto_field("Choice.logprobs", "ChoiceDelta.logprobs")]
    refusal: Annotated[None, http_only("Always null.")] = None


class PromptLogprob(Struct):
    """The log probability of a token at a position of the prompt."""

    logprob: float
    decoded_token: Annotated[str, proto_field("TokenLogprob.token", "PromptToken.token")]
    rank: Annotated[
        int | UnsetType,
        http_only("1 for the most likely token. Absent if it is not among the alternatives."),
    ] = UNSET


# For each token of a prompt the alternatives and the token itself, by token id; None for the first.
PromptLogprobs = list[dict[str, PromptLogprob] | None]


class FunctionCall(Struct):
    """The function of a tool call, with its arguments, or a piece of them in a stream."""

    arguments: Annotated[str, proto_field("FunctionCall.arguments_json")]
    name: str | UnsetType = UNSET


class ToolCall(Struct, kw_only=True):
    """A tool call, or a piece of it in a stream."""

    index: Annotated[int | UnsetType, note("Only in a stream.")] = UNSET
    id: str | UnsetType = UNSET
    type: Annotated[Literal["function"] | UnsetType, http_only("A constant.")] = UNSET
    function: FunctionCall


class Message(Struct, kw_only=True):
    """A generated message."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: str | None = None
    annotations: Annotated[tuple[()], http_only("Always empty.")] = ()
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class Choice(Struct, kw_only=True):
    """An output that was generated from the prompt."""

    index: int
    message: Message
    finish_reason: FinishReason
    logprobs: Logprobs | None
    stop_reason: Annotated[str | int | UnsetType, proto_field("Choice.matched_stop")] = UNSET
    token_ids: list[int] | UnsetType = UNSET


class PromptTokensDetails(Struct):
    """Parts of `prompt_tokens`."""

    cached_tokens: Annotated[int, proto_field("Usage.cached_prompt_tokens")]


class CompletionTokensDetails(Struct):
    """Parts of `completion_tokens`."""

    reasoning_tokens: int


class Usage(Struct):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: Annotated[int, http_only("The sum of `prompt_tokens` and `completion_tokens`.")]
    prompt_tokens_details: Annotated[PromptTokensDetails, http_only("Parts of `prompt_tokens`.")]
    completion_tokens_details: Annotated[
        CompletionTokensDetails, http_only("Parts of `completion_tokens`.")
    ]


class ChatCompletion(Struct, kw_only=True):
    """A chat completion."""

    id: str
    object: Annotated[Literal["chat.completion"], http_only("A constant.")] = "chat.completion"
    created: Annotated[
        int, proto_field("ChatCompletion.create_time", note="In seconds since 1970.")
    ]
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str | UnsetType = UNSET
    service_tier: Annotated[
        Literal["default"] | UnsetType, http_only("Only if the request has a `service_tier`.")
    ] = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Delta(Struct, kw_only=True):
    """The next piece of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(Struct, kw_only=True):
    """The next piece of a choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: Annotated[str | int | UnsetType, proto_field("ChoiceDelta.matched_stop")] = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """A chunk of a streamed chat completion."""

    id: str
    object: Annotated[Literal["chat.completion.chunk"], http_only("A constant.")] = (
        "chat.completion.chunk"
    )
    created: Annotated[
        int, proto_field("ChatCompletionChunk.create_time", note="In seconds since 1970.")
    ]
    model: str
    choices: list[ChunkChoice]
    usage: Annotated[
        Usage | UnsetType | None,
        note("With `include_usage` null before the last event, otherwise absent."),
    ] = UNSET
    system_fingerprint: str | UnsetType = UNSET
    service_tier: Annotated[
        Literal["default"] | UnsetType, http_only("Only if the request has a `service_tier`.")
    ] = UNSET
    prompt_token_ids: Annotated[list[int] | UnsetType, note("Only in the first event.")] = UNSET
    prompt_logprobs: Annotated[PromptLogprobs | UnsetType, note("Only in the first event.")] = UNSET


_IF_REACHED = "Absent if the model's service cannot be reached."
_SAME_LENGTH = proto_field("Model.max_model_len", description="The same as `max_model_len`.")


class ModelCapabilities(Struct, kw_only=True):
    """The kinds of input and output of a model, and the parameters that it rejects."""

    unsupported_parameters: Annotated[
        list[str],
        proto_field(
            "ModelCapabilities.unsupported_fields",
            description="The parameters of chat and text completions that this model rejects, as "
            "paths in the body.",
        ),
    ]
    input_modalities: list[Literal["text", "audio", "image"]]
    embeddings: bool
    tokenization: bool
    structured_outputs: bool
    max_logprobs: int | UnsetType = UNSET
    is_batch_invariant: bool
    output_modalities: list[Literal["text", "audio", "image"]]
    tools: bool
    reasoning: bool | UnsetType = UNSET


class ModelStatus(Struct):
    """The state of a model that the gateway hosts."""

    value: Annotated[
        Literal["unloaded", "loading", "loaded", "unloading"],
        http_only("The state. A model that is not loaded is loaded by the next request for it."),
    ]
    failure: Annotated[
        str | UnsetType, http_only("Why the last start failed. Absent if it did not.")
    ] = UNSET


class Model(Struct, kw_only=True):
    """A served model."""

    id: str
    object: Annotated[Literal["model"], http_only("A constant.")] = "model"
    created: Annotated[int, proto_field("Model.create_time", note="In seconds since 1970.")]
    owned_by: str
    aliases: list[str]
    shutdown_date: Annotated[
        str | None,
        http_only(
            "The day, as YYYY-MM-DD, after which the model may no longer be served. The registry "
            "of the gateway specifies it. Null if none is announced."
        ),
    ]
    max_model_len: Annotated[int | UnsetType, note(_IF_REACHED)] = UNSET
    context_length: Annotated[int | UnsetType, _SAME_LENGTH] = UNSET
    context_window: Annotated[int | UnsetType, _SAME_LENGTH] = UNSET
    max_output_tokens: int | UnsetType = UNSET
    max_completion_tokens: Annotated[
        int | UnsetType,
        proto_field("Model.max_output_tokens", description="The same as `max_output_tokens`."),
    ] = UNSET
    root: str | UnsetType = UNSET
    engine: str | UnsetType = UNSET
    quantization: str | UnsetType = UNSET
    tasks: Annotated[
        list[Literal["generate", "embed", "classify", "score"]] | UnsetType,
        proto_field("ModelCapabilities.tasks", note=_IF_REACHED),
    ] = UNSET
    capabilities: Annotated[ModelCapabilities | UnsetType, note(_IF_REACHED)] = UNSET
    status: Annotated[
        ModelStatus | UnsetType,
        http_only("The state of a model that the gateway hosts. Absent for other models."),
    ] = UNSET


class ModelList(Struct, kw_only=True):
    """The models that the caller may use."""

    object: Annotated[Literal["list"], http_only("A constant.")] = "list"
    data: Annotated[list[Model], proto_field("ListModelsResponse.models")]


class Version(Struct):
    """The version of the gateway."""

    version: Annotated[str, http_only("The version of the gateway.")]
