"""The request and the response bodies of POST /v1/completions."""

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway_http.protocol.field_notes import Rejected, http_only, note, proto_field
from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.response import FinishReason, PromptLogprobs, Usage
from gateway_http.protocol.sampling import ForeignParameters, GenerationRequest
from gateway_http.protocol.struct_fields import own_fields

# All elements have one of the three types. The type cannot express that.
Prompts = Annotated[list[str | UInt32 | list[UInt32]], Meta(min_length=1)]


class UnsupportedParameters(ForeignParameters, kw_only=True):
    """Parameters of other servers that are rejected unless they are null."""

    prompt_embeds: Rejected = None


UNSUPPORTED = own_fields(UnsupportedParameters, GenerationRequest)


class CompletionRequest(UnsupportedParameters, forbid_unknown_fields=True, kw_only=True):
    """The parameters of a text completion."""

    prompt: Annotated[
        str | Prompts,
        proto_field(
            "CompletionParams.prompts",
            note="One text, several texts, the token ids of one prompt or those of several.",
        ),
    ]
    echo: bool | None = None
    logprobs: UInt32 | None = None
    suffix: str | None = None
    best_of: Annotated[UInt32 | None, http_only("Rejected unless it is equal to `n`.")] = None
    add_special_tokens: bool | None = None

    def drop_input(self) -> None:
        super().drop_input()
        self.prompt = ""


class CompletionLogprobs(Struct):
    """Log probabilities in OpenAI's older form: lists with one element for each token."""

    tokens: Annotated[
        list[str],
        proto_field(
            "TokenLogprob.token_bytes",
            "PromptToken.token_bytes",
            description="Each token as text, or as `bytes:\\xe2` if it is not valid UTF-8.",
        ),
    ]
    token_logprobs: Annotated[
        list[float | None],
        proto_field(
            "TokenLogprob.logprob",
            "PromptToken.logprob",
            description="The log probability of each token. Null for the first token of a prompt.",
        ),
    ]
    top_logprobs: Annotated[
        list[dict[str, float] | None],
        proto_field(
            "TokenLogprob.top",
            "PromptToken.top",
            description="The most likely tokens at each position, with their log probabilities.",
        ),
    ]
    text_offset: Annotated[
        list[int],
        proto_field("CompletionChoice.text_offsets", "CompletionChoiceDelta.text_offsets"),
    ]


class CompletionChoice(Struct, kw_only=True):
    """An output that was generated from a prompt, or a piece of it in a stream."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: CompletionLogprobs | None
    stop_reason: Annotated[
        str | int | UnsetType,
        proto_field("CompletionChoice.matched_stop", "CompletionChoiceDelta.matched_stop"),
    ] = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: Annotated[
        PromptLogprobs | UnsetType,
        proto_field("CompletionChoice.prompt_tokens", "CompletionChoiceDelta.prompt_tokens"),
    ] = UNSET


class Completion(Struct, kw_only=True):
    """A whole completion, or a chunk of it in a stream."""

    id: str
    object: Annotated[Literal["text_completion"], http_only("A constant.")] = "text_completion"
    created: Annotated[
        int,
        proto_field(
            "Completion.create_time", "CompletionChunk.create_time", note="In seconds since 1970."
        ),
    ]
    model: str
    choices: list[CompletionChoice]
    usage: Annotated[
        Usage | UnsetType | None,
        note("In a stream: with `include_usage` null before the last event, otherwise absent."),
    ] = UNSET
    system_fingerprint: str | UnsetType = UNSET
