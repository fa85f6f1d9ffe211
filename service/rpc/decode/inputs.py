"""Decodes the inputs of models that do not generate: protobuf to the domain.

Every function raises InvalidField or a subclass.
"""

from collections.abc import Sequence, Sized
from typing import Literal

from chatrpc.v1 import classification_service_pb2, embedding_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.pooling import Activation, TextPair, Truncation
from service.errors import InvalidField
from service.rpc.decode.limits import check_range

TEXTS_FIELD = "text_inputs.texts"
TOKENS_FIELD = "token_inputs.token_ids"

_SIDES: dict[int, Literal["left", "right"]] = {
    embedding_service_pb2.TRUNCATION_SIDE_UNSPECIFIED: "right",
    embedding_service_pb2.TRUNCATION_SIDE_LEFT: "left",
    embedding_service_pb2.TRUNCATION_SIDE_RIGHT: "right",
}
_ACTIVATIONS: dict[int, Activation] = {
    classification_service_pb2.ACTIVATION_UNSPECIFIED: Activation.MODEL,
    classification_service_pb2.ACTIVATION_NONE: Activation.NONE,
    classification_service_pb2.ACTIVATION_SOFTMAX: Activation.SOFTMAX,
    classification_service_pb2.ACTIVATION_SIGMOID: Activation.SIGMOID,
}


def texts(inputs: embedding_service_pb2.TextInputs) -> tuple[str, ...]:
    """Return the texts of a request."""
    return text_list(inputs.texts, "TextInputs.texts", TEXTS_FIELD)


def text_list(given: Sequence[str], name: str, field: str) -> tuple[str, ...]:
    """Return the texts in `field`, whose limits are those of `name`."""
    _check_number(given, name, field)
    _check_not_empty(given, field)
    return tuple(given)


def token_ids(inputs: embedding_service_pb2.TokenInputs) -> tuple[tuple[int, ...], ...]:
    """Return the token ids of a request."""
    _check_number(inputs.token_ids, "TokenInputs.token_ids", TOKENS_FIELD)
    found = tuple(tuple(each.ids) for each in inputs.token_ids)
    _check_not_empty(found, TOKENS_FIELD)
    return found


def pairs(
    given: Sequence[classification_service_pb2.TextPair], name: str, field: str
) -> tuple[TextPair, ...]:
    """Return the pairs in `field`, whose limits are those of `name`."""
    _check_number(given, name, field)
    for index, pair in enumerate(given):
        for part in ("query", "document"):
            if not getattr(pair, part):
                raise InvalidField(f"{field}[{index}].{part}", "The text is empty.")
    return tuple(TextPair(pair.query, pair.document) for pair in given)


def truncation(
    request: embedding_service_pb2.CreateEmbeddingsRequest
    | classification_service_pb2.ClassifyRequest
    | classification_service_pb2.ScoreRequest
    | classification_service_pb2.RerankRequest,
) -> Truncation | None:
    """Return the truncation of a request; None if it has none."""
    if not request.HasField("truncation"):
        return None
    given = request.truncation
    if given.side not in _SIDES:
        raise InvalidField("truncation.side", f"The side {given.side} is unknown.")
    max_tokens = given.max_tokens if given.HasField("max_tokens") else None
    if max_tokens is not None:
        check_range(max_tokens, "Truncation.max_tokens", "truncation.max_tokens")
    return Truncation(_SIDES[given.side], max_tokens)


def activation(number: int) -> Activation:
    """Return the activation of a request."""
    if number not in _ACTIVATIONS:
        raise InvalidField("activation", f"The activation {number} is unknown.")
    return _ACTIVATIONS[number]


def _check_number(inputs: Sized, name: str, field: str) -> None:
    limits = LIMITS[name]
    if not limits.min_size <= len(inputs) <= limits.max_size:
        raise InvalidField(
            field,
            f"There must be {limits.min_size} to {limits.max_size} inputs, not {len(inputs)}.",
        )


def _check_not_empty(inputs: Sequence[Sized], field: str) -> None:
    for index, each in enumerate(inputs):
        if not each:
            raise InvalidField(f"{field}[{index}]", "The input is empty.")
