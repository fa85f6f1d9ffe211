"""Encodes classifications and scores as protobuf messages."""

from collections.abc import Sequence

from chatrpc.v1 import classification_service_pb2
from service.domain.model import ModelCard
from service.domain.pooling import Classifications, Scores


def classify_response(
    found: Classifications, labels: Sequence[str], card: ModelCard
) -> classification_service_pb2.ClassifyResponse:
    """Return the response with these classifications."""
    return classification_service_pb2.ClassifyResponse(
        classifications=[
            classification_service_pb2.Classification(
                index=index, label=labels[_best(scores)], scores=scores
            )
            for index, scores in enumerate(found.scores)
        ],
        labels=labels,
        model=card.id,
        usage=_usage(found),
    )


def score_response(found: Scores, card: ModelCard) -> classification_service_pb2.ScoreResponse:
    """Return the response with these scores."""
    return classification_service_pb2.ScoreResponse(
        scores=found.scores, model=card.id, usage=_usage(found)
    )


def rerank_response(
    found: Scores, top_n: int | None, card: ModelCard
) -> classification_service_pb2.RerankResponse:
    """Return the response with the `top_n` documents of the highest scores; None means all."""
    order = sorted(range(len(found.scores)), key=lambda index: -found.scores[index])
    return classification_service_pb2.RerankResponse(
        results=[
            classification_service_pb2.RerankResult(
                index=index, relevance_score=found.scores[index]
            )
            for index in order[:top_n]
        ],
        model=card.id,
        usage=_usage(found),
    )


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=scores.__getitem__)


def _usage(found: Classifications | Scores) -> classification_service_pb2.ClassificationUsage:
    return classification_service_pb2.ClassificationUsage(prompt_tokens=found.num_prompt_tokens)
