"""DecisionService over a real socket, with a small engine and with scripted ones."""

import asyncio
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from chatrpc.v1 import chat_pb2, decision_service_pb2
from chatrpc_process.access.secret import digest_of
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.errors import QueueFull, StepFailed
from service.generation.local_backend import locally_served
from service.metrics import Metrics
from tests.fakes.wait import until
from tests.support.api_keys import SECRET
from tests.support.grpc_server import Running, served
from tests.support.rpc_errors import RpcError, rpc_error

MINE = (("authorization", f"Bearer {SECRET}"),)
HALF = math.log(0.5)

Question = decision_service_pb2.DecisionQuestion


def scored(logprob: float = HALF) -> list[TokenOutput]:
    """Return the script of an engine that gives each token this log probability."""
    return [TokenOutput((65,), FinishReason.LENGTH, logprobs=(TokenLogprobs(65, logprob),))]


@pytest.fixture
def deciding(running: Running) -> Running:
    running.engine.script = list(scored())
    return running


def predicate(**fields: Any) -> Question:
    return Question(
        instructions="It rains.", predicate=decision_service_pb2.PredicateQuestion(), **fields
    )


def choice(*values: str | bool, **fields: Any) -> Question:
    choices = [
        decision_service_pb2.DecisionChoice(boolean=value)
        if isinstance(value, bool)
        else decision_service_pb2.DecisionChoice(text=value)
        for value in values
    ]
    asked = decision_service_pb2.ChoiceQuestion(choices=choices)
    return Question(instructions="Which?", choice=asked, **fields)


def score(*labels: str) -> Question:
    levels = [decision_service_pb2.DecisionLevel(label=label) for label in labels]
    return Question(instructions="How?", score=decision_service_pb2.ScoreQuestion(levels=levels))


def request(*questions: Question, text: str = "hi", **fields: Any) -> Any:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)]
    )
    given: dict[str, Any] = {"model": "fake", "messages": [message], "questions": questions}
    return decision_service_pb2.CreateDecisionRequest(**given | fields)


async def rejected(running: Running, asked: Any, **options: Any) -> RpcError:
    return await rpc_error(running.decisions.CreateDecision(asked, **options))


async def test_questions_have_the_probabilities_of_their_options(deciding: Running) -> None:
    response = await deciding.decisions.CreateDecision(
        request(predicate(name="rain"), choice("a", "bc"), score("d", "e", "f"))
    )

    rain, which, how = response.answers
    # Each token has the probability 1/2. With the forms with a space before them, `True` has five
    # and six tokens, and so has `False` one more.
    assert rain.name == "rain"
    assert rain.predicate.probability == pytest.approx(2 / 3)
    assert not which.HasField("name")
    assert which.choice.index == 0
    probabilities = [option.probability for option in which.choice.probabilities]
    assert probabilities == pytest.approx([2 / 3, 1 / 3])
    entropy = -sum(p * math.log(p) for p in probabilities)
    assert which.choice.confidence == pytest.approx(1 - entropy / math.log(2))
    assert math.exp(which.choice.probabilities[0].logprob) == pytest.approx(1 / 2 + 1 / 4)
    assert how.score.score == pytest.approx(1)
    assert how.score.confidence == pytest.approx(0)
    assert (response.model, response.system_fingerprint) == ("fake", "fp_fake")


async def test_usage_is_that_of_all_questions(deciding: Running) -> None:
    one = await deciding.decisions.CreateDecision(request(choice("a", "b")))
    two = await deciding.decisions.CreateDecision(request(choice("a", "b"), choice("a", "b")))

    assert one.usage.prompt_tokens > 0
    assert one.usage.completion_tokens == len({"a", "b", " ", " a", " b"})
    assert two.usage.prompt_tokens == 2 * one.usage.prompt_tokens
    assert two.usage.completion_tokens == 2 * one.usage.completion_tokens


async def test_options_of_the_call_reach_the_engine(deciding: Running) -> None:
    await deciding.decisions.CreateDecision(
        request(choice("a", "b"), priority=3, cache_salt="salt"), timeout=30
    )

    for each in deciding.engine.requests:
        assert (each.priority, each.cache_salt) == (3, "salt")
        assert each.sampling.max_tokens == 1
        assert each.sampling.is_greedy
        assert each.deadline is not None


MANY = decision_service_pb2.CreateDecisionRequest(questions=[predicate()] * 401).questions


@pytest.mark.parametrize(
    ("asked", "field", "reason"),
    [
        (request(predicate(), model=""), "model", "MISSING_FIELD"),
        (request(), "questions", "MISSING_FIELD"),
        (request(predicate(), messages=[]), "messages", "INVALID_FIELD"),
        (request(*MANY), "questions", "INVALID_FIELD"),
        (request(Question(instructions="x")), "questions[0].kind", "MISSING_FIELD"),
        (request(predicate(), choice()), "questions[1].choice.choices", "INVALID_FIELD"),
        (request(choice("a")), "questions[0].choice.choices", "INVALID_FIELD"),
        (
            request(choice(*map(str, range(256)))),
            "questions[0].choice.choices",
            "INVALID_FIELD",
        ),
        (request(choice("a", "a")), "questions[0].choice.choices[1]", "INVALID_FIELD"),
        (request(choice(True, True)), "questions[0].choice.choices[1]", "INVALID_FIELD"),
        (request(choice("a", "")), "questions[0].choice.choices[1].text", "INVALID_FIELD"),
        (request(choice("a", " ")), "questions[0].choice.choices[1].text", "INVALID_FIELD"),
        (request(choice("a", "b" * 257)), "questions[0].choice.choices[1].text", "INVALID_FIELD"),
        (
            request(
                Question(
                    instructions="x",
                    choice=decision_service_pb2.ChoiceQuestion(
                        choices=[decision_service_pb2.DecisionChoice()] * 2
                    ),
                )
            ),
            "questions[0].choice.choices[0].value",
            "MISSING_FIELD",
        ),
        (request(score("a")), "questions[0].score.levels", "INVALID_FIELD"),
        (request(score("a", "a")), "questions[0].score.levels[1].label", "INVALID_FIELD"),
        (request(score("", "a")), "questions[0].score.levels[0].label", "INVALID_FIELD"),
        (
            request(Question(predicate=decision_service_pb2.PredicateQuestion())),
            "questions[0].instructions",
            "MISSING_FIELD",
        ),
        (request(predicate(name="x" * 513)), "questions[0].name", "INVALID_FIELD"),
        (request(predicate(), cache_salt="x" * 513), "cache_salt", "INVALID_FIELD"),
        (
            request(predicate(), safety_identifier="x" * 513),
            "safety_identifier",
            "INVALID_FIELD",
        ),
        (request(predicate(), text="x" * 2000), "messages", "CONTEXT_LENGTH_EXCEEDED"),
        (request(predicate(), text="x" * 100_000), "messages", "CONTEXT_LENGTH_EXCEEDED"),
        (
            request(
                predicate(),
                messages=[
                    chat_pb2.ChatMessage(
                        role=role, content=[chat_pb2.ContentPart(text="refuse me")]
                    )
                    for role in (chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT)
                ],
            ),
            "messages",
            "TEMPLATE_REFUSED",
        ),
        (
            request(
                predicate(),
                messages=[
                    chat_pb2.ChatMessage(
                        role=chat_pb2.ROLE_USER,
                        content=[
                            chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://x"))
                        ],
                    )
                ],
            ),
            "messages[0].content[0]",
            "UNSUPPORTED_FIELD",
        ),
    ],
)
async def test_invalid_field_is_rejected_by_its_path(
    deciding: Running, asked: Any, field: str, reason: str
) -> None:
    error = await rejected(deciding, asked)

    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.fields[0], error.reason) == (field, reason)
    assert not deciding.engine.reserved
    assert not deciding.engine.requests


async def test_boolean_and_equal_text_are_different_options(deciding: Running) -> None:
    await deciding.decisions.CreateDecision(request(choice(True, "true", "no")))

    prompt = bytes(deciding.engine.requests[0].prompt_token_ids).decode()
    assert '- true\n- "true"\n- "no"' in prompt


async def test_unknown_model_is_rejected(deciding: Running) -> None:
    error = await rejected(deciding, request(predicate(), model="other"))

    assert error.code is grpc.StatusCode.NOT_FOUND


async def test_model_without_decisions_is_unimplemented(deciding: Running) -> None:
    card = replace(deciding.model.card, id="other", aliases=())
    await deciding.lifecycle.serve(
        replace(locally_served(deciding.model), card=card, decisions=None)
    )

    error = await rejected(deciding, request(predicate(), model="other"))

    assert error.code is grpc.StatusCode.UNIMPLEMENTED
    assert error.message == "This model does not support CreateDecision."


async def test_full_queue_rejects_the_call(deciding: Running) -> None:
    deciding.engine.reserve_error = QueueFull(0, 1)

    error = await rejected(deciding, request(predicate()))

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "QUEUE_FULL")


async def test_failed_step_fails_the_call(deciding: Running) -> None:
    deciding.engine.script = [StepFailed()]

    error = await rejected(deciding, request(predicate(), choice("a", "b")))

    assert error.code is grpc.StatusCode.INTERNAL
    assert not deciding.engine.reserved


async def test_cancelled_call_aborts_its_requests(deciding: Running) -> None:
    deciding.engine.script = [asyncio.Event(), *scored()]
    call = deciding.decisions.CreateDecision(request(predicate(), predicate()))
    await until(lambda: deciding.engine.num_running > 0)

    call.cancel()

    await until(lambda: deciding.engine.num_running == 0 and not deciding.engine.reserved)


async def test_call_ends_at_its_deadline(deciding: Running) -> None:
    deciding.engine.script = [asyncio.Event()]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await deciding.decisions.CreateDecision(request(predicate()), timeout=0.3)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: deciding.engine.num_running == 0 and not deciding.engine.reserved)


async def test_key_and_metrics_count_all_tokens(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        f'[[key]]\nname = "me"\nsha256 = "{digest_of(SECRET)}"\ntokens_per_minute = 10000\n'
    )
    metrics = Metrics()
    async with served(keys, metrics=metrics) as running:
        running.engine.script = list(scored())
        asked = request(predicate(), choice("a", "b"))
        response = await running.decisions.CreateDecision(asked, metadata=MINE)
        long = request(*[predicate()] * 400, text="x" * 900)
        error = await rejected(running, long, metadata=MINE)
        without_key = await rejected(running, asked)

    assert metrics.prompt_tokens._value.get() == response.usage.prompt_tokens
    assert metrics.generation_tokens._value.get() == response.usage.completion_tokens
    assert (error.fields[0], error.reason) == ("messages", "EXCEEDS_LIMIT")
    assert without_key.code is grpc.StatusCode.UNAUTHENTICATED
