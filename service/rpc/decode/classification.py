"""Decodes requests of ClassificationService: protobuf to the domain.

The field of an error is a path in the request, such as `pair_inputs.pairs[0].query`. Every function
raises InvalidField or a subclass.
"""

from chatrpc.v1 import classification_service_pb2
from service.domain.pooling import (
    Activation,
    ClassificationRequest,
    Inputs,
    ScoreRequest,
    TextPair,
    Truncation,
)
from service.errors import InvalidField, MissingField, UnsupportedField
from service.rpc.decode.inputs import (
    TEXTS_FIELD,
    TOKENS_FIELD,
    activation,
    pairs,
    text_list,
    texts,
    token_ids,
    truncation,
)
from service.rpc.decode.limits import check_range, check_size

_PairRequest = classification_service_pb2.ScoreRequest | classification_service_pb2.RerankRequest


def classification_request(
    request: classification_service_pb2.ClassifyRequest,
) -> ClassificationRequest:
    """Check a request of Classify."""
    check_size(request.user, "ClassifyRequest.user", "user")
    inputs: Inputs
    match request.WhichOneof("input"):
        case "text_inputs":
            field, inputs = TEXTS_FIELD, texts(request.text_inputs)
        case "token_inputs":
            field, inputs = TOKENS_FIELD, token_ids(request.token_inputs)
        case "pair_inputs":
            field = "pair_inputs.pairs"
            inputs = pairs(request.pair_inputs.pairs, "TextPairs.pairs", field)
        case None:
            raise MissingField("input")
    return ClassificationRequest(
        inputs,
        field,
        activation(request.activation),
        truncation(request),
        not request.HasField("add_special_tokens") or request.add_special_tokens,
    )


def score_request(
    request: classification_service_pb2.ScoreRequest, *, has_activation: bool
) -> ScoreRequest:
    """Check a request of Score.

    Args:
        has_activation: False if the model rejects `activation`.
    """
    check_size(request.user, "ScoreRequest.user", "user")
    chosen, shortened = _options(request, has_activation=has_activation)
    found = pairs(request.pairs, "ScoreRequest.pairs", "pairs")
    return ScoreRequest(found, "pairs", chosen, shortened)


def rerank_request(
    request: classification_service_pb2.RerankRequest, *, has_activation: bool
) -> ScoreRequest:
    """Check a request of Rerank. The result has one pair for each document.

    Args:
        has_activation: False if the model rejects `activation`.
    """
    check_size(request.user, "RerankRequest.user", "user")
    if not request.query:
        raise MissingField("query")
    documents = text_list(request.documents, "RerankRequest.documents", "documents")
    if request.HasField("top_n"):
        check_range(request.top_n, "RerankRequest.top_n", "top_n")
    most: int | None = None
    if request.HasField("max_tokens_per_document"):
        most = request.max_tokens_per_document
        check_range(most, "RerankRequest.max_tokens_per_document", "max_tokens_per_document")
    chosen, shortened = _options(request, has_activation=has_activation)
    found = tuple(TextPair(request.query, document) for document in documents)
    return ScoreRequest(found, "documents", chosen, shortened, most)


def _options(
    request: _PairRequest, *, has_activation: bool
) -> tuple[Activation, Truncation | None]:
    chosen = activation(request.activation)
    if not has_activation and chosen is not Activation.MODEL:
        raise UnsupportedField("activation", "is not supported by this model.")
    if chosen is Activation.SOFTMAX:
        raise InvalidField("activation", "The softmax of one score is always 1.")
    return chosen, truncation(request)
