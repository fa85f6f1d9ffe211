"""ClassificationService: scores of labels, and scores of documents for a query."""

from functools import partial

from chatrpc.v1 import classification_service_pb2, classification_service_pb2_grpc
from service.rpc.calls.context import Context
from service.rpc.decode.classification import (
    classification_request,
    rerank_request,
    score_request,
)
from service.rpc.decode.limits import check_num_results
from service.rpc.encode.classification import classify_response, rerank_response, score_response
from service.rpc.pooling_calls import PoolingCalls


class ClassificationServicer(classification_service_pb2_grpc.ClassificationServiceServicer):
    """Computes scores with the models that are classifiers or that score pairs of texts."""

    def __init__(self, calls: PoolingCalls) -> None:
        self._calls = calls

    async def Classify(
        self, request: classification_service_pb2.ClassifyRequest, context: Context
    ) -> classification_service_pb2.ClassifyResponse:
        async with self._calls.admitted(
            "Classify", request, context, lambda model: model.classifier
        ) as (call, backend):
            decoded = await call.decode(classification_request, request)
            num_inputs, labels = len(decoded.inputs), backend.labels
            check_num_results(num_inputs, len(labels), decoded.inputs_field, "inputs", "labels")
            found = await backend.classify(decoded, call.context)
            return await call.encode(
                num_inputs * len(labels), classify_response, found, labels, call.model.card
            )

    async def Score(
        self, request: classification_service_pb2.ScoreRequest, context: Context
    ) -> classification_service_pb2.ScoreResponse:
        async with self._calls.admitted("Score", request, context, lambda model: model.scorer) as (
            call,
            backend,
        ):
            decode = partial(score_request, has_activation=backend.has_activation)
            found = await backend.score(await call.decode(decode, request), call.context)
            return score_response(found, call.model.card)

    async def Rerank(
        self, request: classification_service_pb2.RerankRequest, context: Context
    ) -> classification_service_pb2.RerankResponse:
        async with self._calls.admitted("Rerank", request, context, lambda model: model.scorer) as (
            call,
            backend,
        ):
            decode = partial(rerank_request, has_activation=backend.has_activation)
            found = await backend.score(await call.decode(decode, request), call.context)
            top_n = request.top_n if request.HasField("top_n") else None
            return rerank_response(found, top_n, call.model.card)
