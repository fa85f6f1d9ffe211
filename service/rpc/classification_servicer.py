"""ClassificationService: scores of labels, and scores of documents for a query."""

from typing import NoReturn

from chatrpc.v1 import classification_service_pb2, classification_service_pb2_grpc
from service.errors import MissingField, UnsupportedMethod
from service.rpc.calls.context import Context
from service.rpc.serving.lifecycle import Lifecycle


class ClassificationServicer(classification_service_pb2_grpc.ClassificationServiceServicer):
    """Rejects all calls, since no model of `lifecycle` is a classifier."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def Classify(
        self, request: classification_service_pb2.ClassifyRequest, context: Context
    ) -> classification_service_pb2.ClassifyResponse:
        self._reject("Classify", request.model, context)

    async def Score(
        self, request: classification_service_pb2.ScoreRequest, context: Context
    ) -> classification_service_pb2.ScoreResponse:
        self._reject("Score", request.model, context)

    async def Rerank(
        self, request: classification_service_pb2.RerankRequest, context: Context
    ) -> classification_service_pb2.RerankResponse:
        self._reject("Rerank", request.model, context)

    def _reject(self, method: str, model: str, context: Context) -> NoReturn:
        if not model:
            raise MissingField("model")
        raise UnsupportedMethod(method, self._lifecycle.admit(model, context).card.id)
