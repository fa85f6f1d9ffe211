"""Decodes requests for embeddings: protobuf to the domain.

The field of an error is a path in `CreateEmbeddingsRequest`, such as `text_inputs.texts[0]`.
"""

from chatrpc.v1 import embedding_service_pb2
from service.domain.embeddings import EmbeddingRequest
from service.errors import MissingField, UnsupportedField
from service.rpc.decode.inputs import (
    TEXTS_FIELD,
    TOKENS_FIELD,
    texts,
    token_ids,
    truncation,
)
from service.rpc.decode.limits import check_num_results, check_range, check_size


def embedding_request(
    request: embedding_service_pb2.CreateEmbeddingsRequest,
    unsupported_fields: frozenset[str] = frozenset(),
) -> EmbeddingRequest:
    """Check a request.

    Args:
        unsupported_fields: The fields that the model rejects.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    for descriptor, _ in request.ListFields():
        if descriptor.name in unsupported_fields:
            raise UnsupportedField(descriptor.name, "is not supported by this model.")
    check_size(request.user, "CreateEmbeddingsRequest.user", "user")
    check_size(request.prompt_name, "CreateEmbeddingsRequest.prompt_name", "prompt_name")
    inputs: tuple[str, ...] | tuple[tuple[int, ...], ...]
    match request.WhichOneof("input"):
        case "text_inputs":
            field, inputs = TEXTS_FIELD, texts(request.text_inputs)
        case "token_inputs":
            field, inputs = TOKENS_FIELD, token_ids(request.token_inputs)
        case None:
            raise MissingField("input")
    return EmbeddingRequest(
        inputs,
        _dimensions(request, len(inputs)),
        request.user,
        field,
        request.prompt_name if request.HasField("prompt_name") else None,
        truncation(request),
        request.normalize if request.HasField("normalize") else None,
        not request.HasField("add_special_tokens") or request.add_special_tokens,
    )


def _dimensions(
    request: embedding_service_pb2.CreateEmbeddingsRequest, num_inputs: int
) -> int | None:
    if not request.HasField("dimensions"):
        return None
    check_range(request.dimensions, "CreateEmbeddingsRequest.dimensions", "dimensions")
    check_num_results(num_inputs, request.dimensions, "dimensions")
    return request.dimensions
