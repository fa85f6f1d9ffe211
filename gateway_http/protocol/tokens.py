"""The bodies of POST /tokenize and /detokenize, and what a client gets back.

vLLM's names and llama.cpp's are both taken, and both are found in the answers.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from gateway_http.protocol.numbers import UInt32
from gateway_http.protocol.request import Message


class TokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """One of `prompt`, `messages` and llama.cpp's `content` is given."""

    model: str | None = None  # absent: the first that is served
    prompt: str | None = None
    messages: Annotated[list[Message], Meta(min_length=1)] | None = None
    content: str | None = None
    # Absent: true for `prompt`, false for `content`. A template adds its own.
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # Known, and refused by name unless they ask for what happens anyway.
    parse_special: bool | None = None  # true
    chat_template: Any = None
    tools: Any = None
    mm_processor_kwargs: Any = None


class TokenPiece(Struct):
    """llama.cpp's: bytes where a token is no whole characters."""

    id: int
    piece: str | list[int]


class TokenizeResponse(Struct, kw_only=True):
    count: int
    max_model_len: int
    tokens: list[int | TokenPiece]  # all of one kind
    token_strs: list[str] | UnsetType = UNSET


class DetokenizeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    model: str | None = None  # absent: the first that is served
    tokens: list[UInt32]


class DetokenizeResponse(Struct, kw_only=True):
    """The same text under vLLM's name and llama.cpp's."""

    prompt: str
    content: str
