"""Decisions over a small engine, compared with the logits of its model."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from service.deadline import deadline_scope
from service.domain.backend import CallContext
from service.domain.chat import Message
from service.domain.decisions import (
    DecisionRequest,
    Option,
    Question,
    QuestionKind,
    ScoredQuestion,
)
from service.domain.engine import Caller, EngineCapabilities, EngineTimings
from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.model import ChatFormats, LocalModel, ReasoningFormat
from service.domain.sampling import SamplingParams
from service.errors import (
    ContextLengthExceeded,
    DeadlinePassed,
    InvalidField,
    StepFailed,
)
from service.generation import local_decisions
from service.generation.local_backend import locally_served
from service.generation.local_decisions import LocalDecisions, can_decide
from service.text.decision_prompt import question_prompt
from tests.fakes.small_engine import SmallEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import until
from tests.support.grpc_server import CARD

VOCAB_SIZE = 257
TRUE_OR_FALSE = (Option("True"), Option("False"))


class BigramModel:
    """A `SmallModel` whose logits depend on the last two tokens."""

    max_model_len = 1000
    vocab_size = VOCAB_SIZE

    def logits(self, token_ids: Sequence[int]) -> list[list[float]]:
        return [_row((0, *token_ids)[i : i + 2]) for i in range(len(token_ids))]


@cache
def _row(last: Sequence[int]) -> list[float]:
    draws = random.Random(f"{last}")
    return [draws.uniform(-4, 4) for _ in range(VOCAB_SIZE)]


def logprob(context: Sequence[int], token_id: int) -> float:
    row = _row((0, *context)[-2:])
    return row[token_id] - math.log(math.fsum(map(math.exp, row)))


class InlineWorkers:
    """Workers that run each job at once."""

    async def text(self, function, *arguments):  # type: ignore[no-untyped-def]  # as any function
        return function(*arguments)

    async def grammar(self, length, function, *arguments):  # type: ignore[no-untyped-def]
        raise NotImplementedError


@pytest.fixture
async def model(tmp_path: Path) -> AsyncIterator[LocalModel]:
    engine = SmallEngine(EngineSettings(max_num_seqs=4), lambda _: BigramModel())
    await engine.start(EngineModel(tmp_path))
    yield LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), VOCAB_SIZE)
    await engine.stop()


def question(
    *options: str, kind: QuestionKind = QuestionKind.CHOICE, instructions: str = "Which?"
) -> Question:
    return Question(kind, instructions, tuple(map(Option, options)), "questions[0].choice.choices")


def request(*questions: Question, text: str = "hi") -> DecisionRequest:
    return DecisionRequest((Message("user", text),), questions)


def call(deadline_s: float = 60) -> CallContext:
    return CallContext(Caller(), time.monotonic() + deadline_s, 0, InlineWorkers())


def ignore(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
    """Ignore the progress of a question."""


async def decide(
    model: LocalModel, asked: DecisionRequest, num_sequences: int = 4
) -> Sequence[ScoredQuestion]:
    with model.engine.reserve(Caller(), num_sequences):
        return await LocalDecisions(model).decide(asked, call(), num_sequences, ignore)


def expected(model: LocalModel, asked: DecisionRequest, index: int = 0) -> list[float]:
    """Return the probabilities of options of which none begins another."""
    prompt = question_prompt(asked.messages, asked.questions[index], model)
    totals = []
    for forms in prompt.forms:
        totals.append(0.0)
        for form in forms:
            steps = (logprob((*prompt.token_ids, *form[:i]), token) for i, token in enumerate(form))
            totals[-1] += math.exp(sum(steps))
    return [total / sum(totals) for total in totals]


async def test_probabilities_are_those_of_the_model(model: LocalModel) -> None:
    asked = request(question("red", "green", "grey"), question("a", "b"))

    scored = await decide(model, asked)

    for i, each in enumerate(scored):
        found = [option.probability for option in each.options]
        assert found == pytest.approx(expected(model, asked, i), rel=1e-5)
        assert sum(found) == pytest.approx(1)


async def test_answers_do_not_depend_on_the_other_questions(model: LocalModel) -> None:
    first, second = question("red", "green"), question("True", "False")

    alone = await decide(model, request(second), num_sequences=1)
    beside = await decide(model, request(first, second, first))

    assert beside[1].options == alone[0].options
    assert beside[0].options == beside[2].options


async def test_usage_counts_prompts_scored_tokens_and_cached_tokens(model: LocalModel) -> None:
    asked = request(question("ab", "ac"), question("ab", "ac"), text="x" * 100)

    first, second = await decide(model, asked)

    prompt = question_prompt(asked.messages, asked.questions[0], model)
    assert first.num_prompt_tokens == second.num_prompt_tokens == len(prompt.token_ids)
    # The fake template does not end with white space: `ab`, `ac`, ` ab`, ` ac`.
    assert first.num_scored_tokens == len({"a", "ab", "ac", " ", " a", " ab", " ac"})
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens > 100


async def test_progress_counts_scored_tokens(model: LocalModel) -> None:
    noted: dict[int, tuple[int, EngineTimings]] = {}

    def note(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
        noted[index] = num_prompt_tokens, timings

    asked = request(question("a", "b"), question("c", "d"))
    scored = await LocalDecisions(model).decide(asked, call(), 4, note)

    for i, each in enumerate(scored):
        num_prompt_tokens, timings = noted[i]
        assert num_prompt_tokens == each.num_prompt_tokens
        assert timings.num_tokens == each.num_scored_tokens
        assert timings.scheduled_s is not None


async def test_no_more_sequences_run_than_are_reserved(model: LocalModel) -> None:
    most = 0

    def note(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
        nonlocal most
        stats = model.engine.stats()
        most = max(most, stats.num_running + stats.num_waiting)

    asked = request(*[question("a", "b", "c", "d")] * 5)
    await LocalDecisions(model).decide(asked, call(), 2, note)

    assert most == 2


async def test_cancelling_aborts_all_requests(model: LocalModel) -> None:
    asked = request(*[question("abcdef", "ghijkl")] * 50)
    deciding = asyncio.ensure_future(LocalDecisions(model).decide(asked, call(), 4, ignore))
    await until(lambda: model.engine.stats().num_running > 1)

    deciding.cancel()
    await asyncio.wait([deciding])

    assert deciding.cancelled()
    stats = model.engine.stats()
    assert stats.num_running == stats.num_waiting == 0


async def test_failed_step_fails_the_request_and_no_other(model: LocalModel) -> None:
    engine = model.engine
    assert isinstance(engine, SmallEngine)
    engine.step_error = StepFailed()

    with pytest.raises(StepFailed):
        await decide(model, request(question("a", "b")))

    assert len(await decide(model, request(question("a", "b")))) == 1


async def test_failed_step_among_many_is_raised_itself(model: LocalModel) -> None:
    engine = model.engine
    assert isinstance(engine, SmallEngine)

    def fail_third(index: int, num_prompt_tokens: int, timings: EngineTimings) -> None:
        if index == 3:
            engine.step_error = StepFailed()

    with pytest.raises(StepFailed):
        await LocalDecisions(model).decide(
            request(*[question("a", "b")] * 8), call(), 4, fail_third
        )


async def test_passed_deadline_ends_the_request(model: LocalModel) -> None:
    asked, late = request(*[question("abcdef", "ghijkl")] * 400), call(deadline_s=0.2)

    with pytest.raises(DeadlinePassed):
        async with deadline_scope(late.deadline):
            await LocalDecisions(model).decide(asked, late, 4, ignore)

    assert model.engine.stats().num_running == 0


async def test_too_long_conversation_is_rejected(model: LocalModel) -> None:
    with pytest.raises(ContextLengthExceeded):
        await decide(model, request(question("a", "b"), text="x" * 1000))


async def test_too_many_tokens_of_options_are_rejected(model: LocalModel) -> None:
    options = [f"{i:03}{'x' * 60}" for i in range(100)]
    model = replace(model, card=replace(model.card, max_model_len=10_000))

    with pytest.raises(InvalidField, match=str(local_decisions.MAX_SCORED_TOKENS)) as raised:
        await decide(model, request(question(*options)))

    assert raised.value.field == "questions[0].choice.choices"


async def test_options_that_the_tokenizer_does_not_distinguish_are_rejected(
    model: LocalModel,
) -> None:
    class LowerTokenizer(ByteTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return super().encode(text.lower(), add_special_tokens=add_special_tokens)

    model = replace(model, tokenizer=LowerTokenizer())

    with pytest.raises(InvalidField) as raised:
        await decide(model, request(question("a", "b", "A")))

    assert raised.value.field == "questions[0].choice.choices[2]"


async def test_predicate_is_scored_as_true_and_false(model: LocalModel) -> None:
    asked = request(Question(QuestionKind.PREDICATE, "It rains.", TRUE_OR_FALSE, ""))

    [scored] = await decide(model, asked)

    assert [o.probability for o in scored.options] == pytest.approx(
        expected(model, asked), rel=1e-5
    )


@pytest.mark.parametrize("name", ["allowed_token_ids", "num_logprobs"])
def test_engine_that_cannot_score_given_tokens_has_no_decisions(
    model: LocalModel, name: str
) -> None:
    engine = model.engine
    assert isinstance(engine, SmallEngine)
    assert locally_served(model).decisions is not None

    capabilities = EngineCapabilities("other", unsupported=frozenset({name}))

    assert not can_decide(capabilities)


async def test_open_reasoning_is_closed_before_the_options(model: LocalModel) -> None:
    class ThinkingTokenizer(ByteTokenizer):
        def render_chat(self, messages, options):  # type: ignore[no-untyped-def]  # as its base
            return super().render_chat(messages, options) + "<think>\n"

    formats = ChatFormats(reasoning=ReasoningFormat.THINK)
    model = replace(model, tokenizer=ThinkingTokenizer(), formats=formats)
    asked = request(question("a", "b"))

    prompt = question_prompt(asked.messages, asked.questions[0], model)

    assert bytes(prompt.token_ids).endswith(b"<think>\n\n</think>\n\n")
