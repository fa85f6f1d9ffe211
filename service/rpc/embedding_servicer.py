"""EmbeddingService: embeddings of texts or of token ids."""

from chatrpc.v1 import embedding_service_pb2, embedding_service_pb2_grpc
from service.rpc.calls.context import Context
from service.rpc.decode.embeddings import embedding_request
from service.rpc.decode.limits import check_num_results
from service.rpc.encode.embeddings import embeddings_response
from service.rpc.pooling_calls import PoolingCalls


class EmbeddingServicer(embedding_service_pb2_grpc.EmbeddingServiceServicer):
    """Computes embeddings with the models that have an embedding backend."""

    def __init__(self, calls: PoolingCalls) -> None:
        self._calls = calls

    async def CreateEmbeddings(
        self, request: embedding_service_pb2.CreateEmbeddingsRequest, context: Context
    ) -> embedding_service_pb2.CreateEmbeddingsResponse:
        async with self._calls.admitted(
            "CreateEmbeddings", request, context, lambda model: model.embeddings
        ) as (call, backend):
            decoded = await call.decode(embedding_request, request, backend.unsupported_fields)
            if decoded.dimensions is None and backend.num_dimensions is not None:
                check_num_results(len(decoded.inputs), backend.num_dimensions, decoded.inputs_field)
            embeddings = await backend.embed(decoded, call.context)
            num_dimensions = max(map(len, embeddings.vectors))
            check_num_results(len(embeddings.vectors), num_dimensions, decoded.inputs_field)
            num_numbers = len(embeddings.vectors) * num_dimensions
            return await call.encode(num_numbers, embeddings_response, embeddings, call.model.card)
