"""Converts the parameters that requests for embeddings, scores and classifications share."""

from collections.abc import Sequence

from chatrpc.v1 import completion_pb2, embedding_service_pb2
from gateway_http.convert.inputs import texts_or_token_ids
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.pooling import PoolingRequest

_SIDES = {
    "left": embedding_service_pb2.TRUNCATION_SIDE_LEFT,
    "right": embedding_service_pb2.TRUNCATION_SIDE_RIGHT,
    "START": embedding_service_pb2.TRUNCATION_SIDE_LEFT,
    "END": embedding_service_pb2.TRUNCATION_SIDE_RIGHT,
}


def pooled_inputs(
    value: str | Sequence[str | int | list[int]],
) -> tuple[embedding_service_pb2.TextInputs | None, embedding_service_pb2.TokenInputs | None]:
    """Convert the parameter `input` to texts or to token ids. One of the two is None.

    Raises:
        InvalidRequest: The value mixes texts, token ids and lists of them.
    """
    texts, token_ids = texts_or_token_ids(value, "input")
    if texts:
        return embedding_service_pb2.TextInputs(texts=texts), None
    return None, embedding_service_pb2.TokenInputs(
        token_ids=[completion_pb2.TokenIds(ids=ids) for ids in token_ids]
    )


def truncation(
    body: PoolingRequest, *, is_truncated: bool = False
) -> embedding_service_pb2.Truncation | None:
    """Return how inputs are shortened; None if they are not.

    Args:
        body: The request.
        is_truncated: True if another of its options asks for truncation.

    Raises:
        InvalidRequest: Two options contradict each other.
    """
    length = body.truncate_prompt_tokens
    side: str | None = body.truncation_side
    if body.truncate is not None:
        if length is not None or side is not None:
            raise _contradiction("truncate", "truncate_prompt_tokens or truncation_side")
        side = None if body.truncate == "NONE" else body.truncate
        is_truncated = is_truncated or side is not None
    elif side is not None and length is None and not is_truncated:
        raise InvalidRequest(
            "Invalid 'truncation_side': it needs an option that truncates, such as "
            "truncate_prompt_tokens.",
            "truncation_side",
            "invalid_value",
        )
    if length is None and not is_truncated:
        return None
    return embedding_service_pb2.Truncation(
        side=_SIDES.get(side or "", embedding_service_pb2.TRUNCATION_SIDE_UNSPECIFIED),
        max_tokens=None if length in {None, -1} else length,
    )


def _contradiction(param: str, others: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid '{param}': it cannot be used with {others}.", param, "invalid_value"
    )
