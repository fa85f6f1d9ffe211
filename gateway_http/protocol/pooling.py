"""Parameters that requests for embeddings, scores and classifications share."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from gateway_http.protocol.field_notes import http_only, proto_field
from gateway_http.protocol.numbers import Int32

# -1 is the model's own maximum.
_MaxTokens = Annotated[int, Meta(ge=-1, le=2**32 - 1)]


class PoolingRequest(Struct, kw_only=True):
    """The parameters of every request whose input is computed at once."""

    truncate_prompt_tokens: Annotated[
        _MaxTokens | None,
        proto_field("Truncation.max_tokens", note="-1 is the model's own maximum."),
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None,
        proto_field("Truncation.side", note="It needs another option that truncates."),
    ] = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        http_only("NIM's option: truncate the inputs to the model's maximum, at this side."),
    ] = None
    priority: Int32 | None = None
    user: str | None = None


class PoolingUsage(Struct):
    """Counts of tokens."""

    prompt_tokens: Annotated[int, proto_field("ClassificationUsage.prompt_tokens")]
    total_tokens: Annotated[int, http_only("Equal to `prompt_tokens`.")]
