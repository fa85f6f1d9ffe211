"""Decodes requests for decisions: protobuf to the domain.

The field of an error is a path in `CreateDecisionRequest`, such as `questions[0].choice.choices`.
"""

import json
from collections.abc import Sequence, Sized

from chatrpc.v1 import decision_service_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.backend import ModelSpec
from service.domain.decisions import DecisionRequest, Option, Question, QuestionKind
from service.errors import InvalidField, MissingField
from service.rpc.decode.chat import check_fits, messages
from service.rpc.decode.options import cache_salt
from service.rpc.decode.unsupported import check_identifier

_TRUE_OR_FALSE = (Option("True"), Option("False"))


def decision_request(
    request: decision_service_pb2.CreateDecisionRequest, spec: ModelSpec
) -> DecisionRequest:
    """Check a request.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    check_fits(request.messages, spec)
    for name in ("safety_identifier", "prompt_cache_key"):
        check_identifier(name, getattr(request, name))
    if not request.questions:
        raise MissingField("questions")
    _check_size(request.questions, "CreateDecisionRequest.questions", "questions")
    return DecisionRequest(
        messages(request.messages),
        tuple(
            _question(question, f"questions[{i}]") for i, question in enumerate(request.questions)
        ),
        cache_salt(request.cache_salt),
    )


def num_options(request: decision_service_pb2.CreateDecisionRequest) -> int:
    """Return the number of options of all questions together."""
    return sum(
        len(question.choice.choices) or len(question.score.levels) or len(_TRUE_OR_FALSE)
        for question in request.questions
    )


def _question(proto: decision_service_pb2.DecisionQuestion, path: str) -> Question:
    _check_size(proto.name, "DecisionQuestion.name", f"{path}.name")
    if not proto.instructions:
        raise MissingField(f"{path}.instructions")
    options: tuple[Option, ...]
    match proto.WhichOneof("kind"):
        case "predicate":
            field, options = f"{path}.predicate", _TRUE_OR_FALSE
        case "choice":
            field = f"{path}.choice.choices"
            options = _choices(proto.choice.choices, field)
        case "score":
            field = f"{path}.score.levels"
            options = _levels(proto.score.levels, field)
        case None:
            raise MissingField(f"{path}.kind")
    kind = QuestionKind(proto.WhichOneof("kind"))
    return Question(kind, proto.instructions, options, field)


def _choices(
    protos: Sequence[decision_service_pb2.DecisionChoice], path: str
) -> tuple[Option, ...]:
    """Return the options of a choice.

    If a text is equal to a boolean's, all texts are written as JSON strings, in quotes.
    """
    _check_size(protos, "ChoiceQuestion.choices", path)
    values: dict[str | bool, int] = {}
    for i, proto in enumerate(protos):
        match proto.WhichOneof("value"):
            case "text":
                _check_text(proto.text, "DecisionChoice.text", f"{path}[{i}].text")
                value: str | bool = proto.text
            case "boolean":
                value = proto.boolean
            case None:
                raise MissingField(f"{path}[{i}].value")
        if value in values:
            raise InvalidField(f"{path}[{i}]", f"is equal to that at {values[value]}.")
        values[value] = i
    has_quotes = any(json.dumps(value) in values for value in values if isinstance(value, bool))
    return tuple(
        Option(
            value
            if isinstance(value, str) and not has_quotes
            else json.dumps(value, ensure_ascii=False),
            proto.description,
        )
        for value, proto in zip(values, protos, strict=True)
    )


def _levels(protos: Sequence[decision_service_pb2.DecisionLevel], path: str) -> tuple[Option, ...]:
    _check_size(protos, "ScoreQuestion.levels", path)
    labels: dict[str, int] = {}
    for i, proto in enumerate(protos):
        _check_text(proto.label, "DecisionLevel.label", f"{path}[{i}].label")
        if proto.label in labels:
            raise InvalidField(f"{path}[{i}].label", f"is equal to that at {labels[proto.label]}.")
        labels[proto.label] = i
    return tuple(Option(proto.label, proto.description) for proto in protos)


def _check_text(text: str, name: str, path: str) -> None:
    if not text.strip():
        raise InvalidField(path, "is empty.")
    _check_size(text, name, path)


def _check_size(value: Sized, name: str, path: str) -> None:
    limits = LIMITS[name]
    if len(value) > limits.max_size or len(value) < limits.min_size:
        things = "characters" if isinstance(value, str) else "elements"
        least = f"{limits.min_size} to " if limits.min_size else "at most "
        raise InvalidField(path, f"must have {least}{limits.max_size} {things}, not {len(value)}.")
