"""EmbeddingService: embeddings of texts or of token ids."""

from chatrpc.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from service.deadline import deadline_scope
from service.domain.backend import CallContext
from service.errors import MissingField, UnsupportedMethod
from service.rpc.calls.caller import current_caller, received_bytes
from service.rpc.calls.context import Context
from service.rpc.calls.deadline import deadline_of
from service.rpc.calls.work_pools import WorkPools
from service.rpc.decode.embeddings import check_fits, embedding_request
from service.rpc.encode.embeddings import embeddings_response
from service.rpc.serving.lifecycle import Lifecycle

# Larger requests are decoded, and responses with more numbers encoded, off the event loop.
_MAX_DECODED_BYTES_ON_LOOP = 64 << 10
_MAX_ENCODED_NUMBERS_ON_LOOP = 50_000  # about a millisecond


class EmbeddingServicer(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Computes embeddings with the models of `lifecycle` that have an embedding backend.

    Args:
        pools: Threads for work that would block the event loop.
        request_timeout_s: Maximum duration of a request in seconds, even if its deadline is later.
    """

    def __init__(self, lifecycle: Lifecycle, pools: WorkPools, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._pools = pools
        self._request_timeout_s = request_timeout_s

    async def CreateEmbeddings(
        self, request: embedding_service_pb2.CreateEmbeddingsRequest, context: Context
    ) -> embedding_service_pb2.CreateEmbeddingsResponse:
        if not request.model:
            raise MissingField("model")
        deadline = deadline_of(context, self._request_timeout_s)
        model = self._lifecycle.admit(request.model, context)
        if model.embeddings is None:
            raise UnsupportedMethod("CreateEmbeddings", model.card.id)
        caller = current_caller()
        call = CallContext(caller, deadline, caller.default_priority, self._pools)
        with model.backend.reserve(caller, 1):
            async with deadline_scope(deadline):
                if received_bytes() > _MAX_DECODED_BYTES_ON_LOOP:
                    decoded = await self._pools.text(embedding_request, request)
                else:
                    decoded = embedding_request(request)
                embeddings = await model.embeddings.embed(decoded, call)
        num_dimensions = max(map(len, embeddings.vectors))
        check_fits(len(embeddings.vectors), num_dimensions, decoded.inputs_field)
        if len(embeddings.vectors) * num_dimensions > _MAX_ENCODED_NUMBERS_ON_LOOP:
            return await self._pools.text(embeddings_response, embeddings, model.card)
        return embeddings_response(embeddings, model.card)
