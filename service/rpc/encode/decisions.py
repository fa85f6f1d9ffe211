"""Encodes decisions as protobuf messages."""

import math
from collections.abc import Sequence

from chatrpc.v1 import chat_pb2, decision_service_pb2
from service.domain.decisions import (
    DecisionRequest,
    Question,
    QuestionKind,
    ScoredOption,
    ScoredQuestion,
)
from service.domain.model import ModelCard


def decision_response(
    request: decision_service_pb2.CreateDecisionRequest,
    decoded: DecisionRequest,
    scored: Sequence[ScoredQuestion],
    card: ModelCard,
) -> decision_service_pb2.CreateDecisionResponse:
    """Return the response with a result of each question.

    Args:
        request: The request. Only the names of its questions are read.
        decoded: The same request, decoded.
        scored: The questions with the probabilities of their options.
        card: The model.
    """
    response = decision_service_pb2.CreateDecisionResponse(
        model=card.id,
        usage=chat_pb2.Usage(
            prompt_tokens=sum(each.num_prompt_tokens for each in scored),
            completion_tokens=sum(each.num_scored_tokens for each in scored),
            cached_prompt_tokens=sum(each.num_cached_tokens for each in scored),
        ),
        system_fingerprint=card.fingerprint,
    )
    for proto, question, each in zip(request.questions, decoded.questions, scored, strict=True):
        answer = _answer(question, each.options)
        if proto.HasField("name"):
            answer.name = proto.name
        response.answers.append(answer)
    return response


def _answer(
    question: Question, options: Sequence[ScoredOption]
) -> decision_service_pb2.DecisionAnswer:
    probabilities = [
        decision_service_pb2.OptionProbability(
            probability=option.probability, logprob=option.logprob
        )
        for option in options
    ]
    values = [option.probability for option in options]
    match question.kind:
        case QuestionKind.PREDICATE:
            is_true, is_false = probabilities
            return decision_service_pb2.DecisionAnswer(
                predicate=decision_service_pb2.PredicateAnswer(
                    probability=values[0], true_option=is_true, false_option=is_false
                )
            )
        case QuestionKind.CHOICE:
            return decision_service_pb2.DecisionAnswer(
                choice=decision_service_pb2.ChoiceAnswer(
                    index=values.index(max(values)),
                    confidence=_confidence(values),
                    probabilities=probabilities,
                )
            )
        case QuestionKind.SCORE:
            return decision_service_pb2.DecisionAnswer(
                score=decision_service_pb2.ScoreAnswer(
                    score=sum(index * value for index, value in enumerate(values)),
                    confidence=_confidence(values),
                    probabilities=probabilities,
                )
            )


def _confidence(probabilities: Sequence[float]) -> float:
    """Return the concentration of at least two probabilities: 0 if equal, 1 if one is 1.

    It is 1 - H / ln(k), with the entropy H of the k probabilities.
    """
    entropy = -sum(p * math.log(p) for p in probabilities if p > 0)
    return min(1.0, max(0.0, 1 - entropy / math.log(len(probabilities))))
