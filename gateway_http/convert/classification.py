"""Converts reranking, scores and classifications between JSON and the proto."""

import time
import uuid
from collections.abc import Sequence

from chatrpc.v1 import classification_service_pb2
from gateway_http.convert.inputs import is_single
from gateway_http.convert.pooling import pooled_inputs, truncation
from gateway_http.convert.unsupported import reject_given
from gateway_http.protocol import classification as http
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.pooling import PoolingUsage

# The service's limit of a message in bytes is as large. A query is repeated in each of its pairs.
_MAX_QUERY_CHARS = 8 << 20


def rerank_request(body: http.RerankRequest) -> classification_service_pb2.RerankRequest:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(body, http.UNSUPPORTED[http.UnsupportedRerankParameters])
    return classification_service_pb2.RerankRequest(
        query=_text(body.query),
        documents=map(_text, body.documents),
        top_n=body.top_n,
        max_tokens_per_document=body.max_tokens_per_doc,
        activation=_activation(body.use_activation),
        truncation=truncation(body, is_truncated=bool(body.truncation)),
        priority=body.priority,
        user=body.user,
    )


def rerank_names(body: http.RerankRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters; see `param_of`."""
    objects = (i for i, each in enumerate(body.documents) if isinstance(each, http.TextDocument))
    return {f"documents[{i}]": f"documents[{i}].text" for i in objects}


def rerank_response(
    response: classification_service_pb2.RerankResponse, model: str, body: http.RerankRequest
) -> http.Reranking:
    """Convert a response. `model` is the name of its model for clients."""
    return http.Reranking(
        id=_id("rerank"),
        model=model,
        results=[
            http.RerankResult(
                each.index,
                each.relevance_score,
                http.RankedDocument(_text(body.documents[each.index])) if body.documents else None,
            )
            for each in response.results
        ],
        usage=_usage(response.usage),
    )


def score_request(body: http.ScoreRequest) -> classification_service_pb2.ScoreRequest:
    """Convert a body, as `rerank_request`.

    Raises:
        InvalidRequest: The proto has no equivalent of a field, or the texts do not form pairs.
    """
    reject_given(body, http.UNSUPPORTED[http.UnsupportedScoreParameters])
    first, second = _name(body, http.FIRST_TEXTS), _name(body, http.SECOND_TEXTS)
    queries, documents = _texts(getattr(body, first)), _texts(getattr(body, second))
    if len(queries) == 1:
        if len(queries[0]) * len(documents) > _MAX_QUERY_CHARS:
            raise InvalidRequest(
                f"Invalid '{first}': one text that is paired with all of {second} may have at most "
                f"{_MAX_QUERY_CHARS} characters in all pairs together.",
                first,
                "invalid_value",
            )
        queries = [queries[0]] * len(documents)
    if len(queries) != len(documents):
        raise InvalidRequest(
            f"Invalid '{first}': there must be one text, or as many as in {second}, "
            f"{len(documents)}, not {len(queries)}.",
            first,
            "invalid_value",
        )
    return classification_service_pb2.ScoreRequest(
        pairs=[
            classification_service_pb2.TextPair(query=query, document=document)
            for query, document in zip(queries, documents, strict=True)
        ],
        activation=_activation(body.use_activation),
        truncation=truncation(body),
        priority=body.priority,
        user=body.user,
    )


def score_names(body: http.ScoreRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters; see `param_of`."""
    try:
        first, second = _name(body, http.FIRST_TEXTS), _name(body, http.SECOND_TEXTS)
    except InvalidRequest:
        return {}
    queries, documents = getattr(body, first), getattr(body, second)
    names: dict[str, str] = {}
    for i in range(len(_texts(documents))):
        has_one = isinstance(queries, str) or len(queries) == 1
        query = first if isinstance(queries, str) else f"{first}[{0 if has_one else i}]"
        names[f"pairs[{i}].query"] = query
        names[f"pairs[{i}].document"] = second if isinstance(documents, str) else f"{second}[{i}]"
        names[f"pairs[{i}]"] = names[f"pairs[{i}].document"]
    return names | {"pairs": second}


def score_response(
    response: classification_service_pb2.ScoreResponse, model: str, _body: http.ScoreRequest
) -> http.Scores:
    """Convert a response. `model` is the name of its model for clients."""
    return http.Scores(
        id=_id("score"),
        created=int(time.time()),
        model=model,
        data=[http.Score(index=i, score=score) for i, score in enumerate(response.scores)],
        usage=_usage(response.usage),
    )


def classify_request(body: http.ClassifyRequest) -> classification_service_pb2.ClassifyRequest:
    """Convert a body, as `rerank_request`.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(body, http.UNSUPPORTED[http.UnsupportedClassifyParameters])
    text_inputs, token_inputs = pooled_inputs(body.input)
    return classification_service_pb2.ClassifyRequest(
        text_inputs=text_inputs,
        token_inputs=token_inputs,
        activation=_activation(body.use_activation),
        truncation=truncation(body),
        add_special_tokens=body.add_special_tokens,
        priority=body.priority,
        user=body.user,
    )


def classify_names(body: http.ClassifyRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters; see `param_of`."""
    return {"input[0]": "input"} if is_single(body.input) else {}


def classify_response(
    response: classification_service_pb2.ClassifyResponse, model: str, _body: http.ClassifyRequest
) -> http.Classifications:
    """Convert a response. `model` is the name of its model for clients."""
    return http.Classifications(
        id=_id("classify"),
        created=int(time.time()),
        model=model,
        labels=list(response.labels),
        data=[
            http.Classification(
                index=each.index,
                label=each.label,
                probs=list(each.scores),
                num_classes=len(response.labels),
            )
            for each in response.classifications
        ],
        usage=_usage(response.usage),
    )


def _text(document: str | http.TextDocument) -> str:
    return document if isinstance(document, str) else document.text


def _texts(given: str | Sequence[str]) -> Sequence[str]:
    return [given] if isinstance(given, str) else given


def _name(body: http.ScoreRequest, names: Sequence[str]) -> str:
    """Return the one of the names that the body has.

    Raises:
        InvalidRequest: It has none of them or several.
    """
    given = [name for name in names if getattr(body, name) is not None]
    if not given:
        raise InvalidRequest(
            f"Missing required parameter: '{names[0]}'.", names[0], "missing_required_parameter"
        )
    if len(given) > 1:
        raise InvalidRequest(
            f"Invalid '{given[1]}': it cannot be used with {given[0]}.", given[1], "invalid_value"
        )
    return given[0]


def _activation(use_activation: bool | None) -> classification_service_pb2.Activation.ValueType:
    if use_activation is False:
        return classification_service_pb2.ACTIVATION_NONE
    return classification_service_pb2.ACTIVATION_UNSPECIFIED


def _usage(usage: classification_service_pb2.ClassificationUsage) -> PoolingUsage:
    return PoolingUsage(usage.prompt_tokens, usage.prompt_tokens)


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
