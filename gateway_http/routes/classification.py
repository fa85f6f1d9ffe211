"""POST /v1/rerank, /v1/score and /v1/classify."""

from typing import Any

from chatrpc.v1 import classification_service_pb2
from gateway_http.convert import classification
from gateway_http.protocol.classification import ClassifyRequest, RerankRequest, ScoreRequest
from gateway_http.protocol.decode import decoder
from gateway_http.routes.computation import Computation
from gateway_http.upstream import rpcs


def _rerank_bytes(request: classification_service_pb2.RerankRequest, num_bytes: int) -> int:
    """Return the size of all pairs: each document is read with the query."""
    num_repeated = max(0, len(request.documents) - 1)
    return num_bytes + num_repeated * len(request.query.encode())


def _score_bytes(request: Any, _: int) -> int:
    """Return the size of all pairs. In the body, one query may belong to several documents."""
    return int(request.ByteSize())


rerank = Computation(
    rpc=rpcs.RERANK,
    decode=decoder(RerankRequest),
    message=classification.rerank_request,
    names=classification.rerank_names,
    response=classification.rerank_response,
    input_field="documents",
    input_bytes=_rerank_bytes,
)

score = Computation(
    rpc=rpcs.SCORE,
    decode=decoder(ScoreRequest),
    message=classification.score_request,
    names=classification.score_names,
    response=classification.score_response,
    input_field="pairs",
    input_bytes=_score_bytes,
)

classify = Computation(
    rpc=rpcs.CLASSIFY,
    decode=decoder(ClassifyRequest),
    message=classification.classify_request,
    names=classification.classify_names,
    response=classification.classify_response,
)
