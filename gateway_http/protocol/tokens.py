"""The request and response bodies of POST /tokenize and /detokenize.

Requests may use vLLM's names or llama.cpp's. Responses have both.
"""

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway_http.protocol.field_notes import Rejected, http_only, note, proto_field
from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.request import FunctionTool, Message
from gateway_http.protocol.sampling import ChatTemplateKwargs, ReasoningEffort

_FIRST_MODEL = note("Absent: the first model that is served.")


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """The input to tokenize: one of `prompt`, `messages` and llama.cpp's `content`."""

    model: Annotated[str | None, _FIRST_MODEL] = None
    prompt: Annotated[str | None, proto_field("TokenizeRequest.text")] = None
    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1)] | None,
        proto_field("TokenizeRequest.conversation", "Conversation.messages"),
    ] = None
    content: Annotated[
        str | None, proto_field("TokenizeRequest.text", note="llama.cpp's name of `prompt`.")
    ] = None
    add_special_tokens: Annotated[
        bool | None, note("Absent with `content`: false. Rejected if it is true with `messages`.")
    ] = None
    add_special: Annotated[
        bool | None,
        proto_field(
            "TokenizeRequest.add_special_tokens", note="llama.cpp's name of `add_special_tokens`."
        ),
    ] = None
    return_token_strs: Annotated[
        bool | None,
        proto_field(
            "TokenizeRequest.return_token_bytes",
            description="Return each token as text, in `token_strs`.",
        ),
    ] = None
    with_pieces: Annotated[
        bool | None,
        proto_field(
            "TokenizeRequest.return_token_bytes",
            description="Return each token as text beside its id, in `tokens`. From llama.cpp.",
        ),
    ] = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: ChatTemplateKwargs = None
    parse_special: Annotated[
        bool | None,
        http_only("Special tokens in a text are always read as those tokens. Rejected if false."),
    ] = None
    tools: Annotated[
        list[FunctionTool] | None,
        proto_field("Conversation.tools", note="Valid only with `messages`."),
    ] = None
    reasoning_effort: Annotated[
        ReasoningEffort | None,
        proto_field("Conversation.reasoning_effort", note="Valid only with `messages`."),
    ] = None
    chat_template: Rejected = None
    mm_processor_kwargs: Rejected = None


class TokenPiece(Struct):
    """A token in llama.cpp's form."""

    id: Annotated[int, proto_field("TokenizeResponse.token_ids", description="The token's id.")]
    piece: Annotated[
        str | list[int],
        proto_field(
            "TokenizeResponse.token_bytes",
            description="The token as text, or as bytes if it is not valid UTF-8.",
        ),
    ]


class TokenizeResponse(Struct, kw_only=True):
    """The tokens of a text or a conversation."""

    count: Annotated[int, http_only("The number of tokens.")]
    max_model_len: int
    tokens: Annotated[
        list[int | TokenPiece],
        proto_field("TokenizeResponse.token_ids", note="With `with_pieces`: objects."),
    ]
    token_strs: Annotated[
        list[str] | UnsetType,
        proto_field(
            "TokenizeResponse.token_bytes",
            description="With `return_token_strs`: each token as text.",
        ),
    ] = UNSET


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Token ids to turn into text."""

    model: Annotated[str | None, _FIRST_MODEL] = None
    tokens: Annotated[list[UInt32], proto_field("DetokenizeRequest.token_ids")]


class DetokenizeResponse(Struct, kw_only=True):
    """The text of the tokens, under vLLM's name and llama.cpp's."""

    prompt: Annotated[str, proto_field("DetokenizeResponse.text")]
    content: Annotated[
        str, proto_field("DetokenizeResponse.text", note="llama.cpp's name of `prompt`.")
    ]
