"""Encodes embeddings as protobuf messages."""

from chatrpc.v1 import embedding_service_pb2
from service.domain.embeddings import Embeddings
from service.domain.model import ModelCard


def embeddings_response(
    embeddings: Embeddings, card: ModelCard
) -> embedding_service_pb2.CreateEmbeddingsResponse:
    """Return the response with these embeddings."""
    return embedding_service_pb2.CreateEmbeddingsResponse(
        embeddings=[
            embedding_service_pb2.Embedding(index=index, values=vector)
            for index, vector in enumerate(embeddings.vectors)
        ],
        model=card.id,
        usage=embedding_service_pb2.EmbeddingUsage(prompt_tokens=embeddings.num_prompt_tokens),
    )
