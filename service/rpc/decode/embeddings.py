"""Decodes requests for embeddings: protobuf to the domain.

The field of an error is a path in `CreateEmbeddingsRequest`, such as `text_inputs.texts[0]`.
"""

from collections.abc import Sequence, Sized

from chatrpc.v1 import embedding_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.embeddings import EmbeddingRequest
from service.errors import InvalidField, MissingField, UnsupportedField

# The numbers of all embeddings of a response, as floats of 32 bits, must fit into one message of
# 32 MiB.
MAX_NUMBERS = 8_000_000
_NOT_SERVED = ("prompt_name", "truncation", "normalize", "add_special_tokens", "priority")


def embedding_request(
    request: embedding_service_pb2.CreateEmbeddingsRequest,
) -> EmbeddingRequest:
    """Check a request.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    max_size = LIMITS["CreateEmbeddingsRequest.user"].max_size
    if len(request.user) > max_size:
        raise InvalidField("user", f"has at most {max_size} characters.")
    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    for descriptor, _ in request.ListFields():
        if descriptor.name in _NOT_SERVED:
            raise UnsupportedField(descriptor.name, "is not supported by this model.")
    match request.WhichOneof("input"):
        case "text_inputs":
            field, inputs = "text_inputs.texts", tuple(request.text_inputs.texts)
            _check_inputs(inputs, "TextInputs.texts", field)
        case "token_inputs":
            field = "token_inputs.token_ids"
            _check_inputs(request.token_inputs.token_ids, "TokenInputs.token_ids", field)
            inputs = tuple(tuple(token_ids.ids) for token_ids in request.token_inputs.token_ids)
        case None:
            raise MissingField("input")
    _check_not_empty(inputs, field)
    return EmbeddingRequest(inputs, _dimensions(request, len(inputs)), request.user, field)


def check_fits(num_inputs: int, num_dimensions: int, field: str) -> None:
    """Check that the embeddings of a request fit into one message.

    Raises:
        InvalidField: They do not fit. The error names `field`.
    """
    if num_inputs * num_dimensions > MAX_NUMBERS:
        raise InvalidField(
            field,
            f"At most {MAX_NUMBERS} numbers are returned at once, and {num_inputs} embeddings of "
            f"{num_dimensions} dimensions have more. Send fewer inputs.",
        )


def _check_inputs(inputs: Sized, name: str, field: str) -> None:
    limits = LIMITS[name]
    if not limits.min_size <= len(inputs) <= limits.max_size:
        raise InvalidField(
            field,
            f"There must be {limits.min_size} to {limits.max_size} inputs, not {len(inputs)}.",
        )


def _check_not_empty(inputs: Sequence[Sized], field: str) -> None:
    for i, each in enumerate(inputs):
        if not each:
            raise InvalidField(f"{field}[{i}]", "The input is empty.")


def _dimensions(
    request: embedding_service_pb2.CreateEmbeddingsRequest, num_inputs: int
) -> int | None:
    if not request.HasField("dimensions"):
        return None
    limits = LIMITS["CreateEmbeddingsRequest.dimensions"]
    if not limits.allow(request.dimensions):
        raise InvalidField("dimensions", f"must be {limits.range}.")
    check_fits(num_inputs, request.dimensions, "dimensions")
    return request.dimensions
