"""Outputs of vLLM as outputs of the engine."""

import math
from typing import Any

import pytest

from service.domain.engine import FinishReason, Request, TokenLogprobs
from service.domain.sampling import SamplingParams
from service.errors import ConstraintFailed, StepFailed
from service.vllm_engine.sequence_reader import SequenceReader
from tests.fakes.constraint import FakeConstraint
from tests.fakes.vllm_client import FakeCompletion, FakeLogprob, FakeOutput

STOP = 1
PROMPT = (5, 6, 7)


def reader(index: int = 0, **options: Any) -> SequenceReader:
    own = {"allowed_token_ids", "min_tokens"}
    params = SamplingParams(**{name: value for name, value in options.items() if name in own})
    rest = {name: value for name, value in options.items() if name not in own}
    return SequenceReader(Request(PROMPT, params, frozenset({STOP}), **rest), index)


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (None, None),
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("repetition", FinishReason.STOP),
    ],
)
def test_tokens_and_finish_reason_are_read(reason: str | None, expected: FinishReason) -> None:
    output = reader(2).read(FakeOutput.of(8, 9, finish_reason=reason, num_cached_tokens=4))
    assert (output.token_ids, output.finish_reason) == ((8, 9), expected)
    assert (output.index, output.num_cached_tokens) == (2, 4)


@pytest.mark.parametrize("reason", ["abort", "error", "something_new"])
def test_other_finish_reason_fails_the_request(reason: str) -> None:
    with pytest.raises(StepFailed):
        reader().read(FakeOutput.of(8, finish_reason=reason))


def test_log_probabilities_are_in_descending_order_and_ties_by_id() -> None:
    position = {
        9: FakeLogprob(-4.0, 17),
        4: FakeLogprob(-1.0, 1),
        3: FakeLogprob(-1.0, 2),
        2: FakeLogprob(-0.5, 3),
    }
    output = FakeOutput([FakeCompletion((9,), None, [position])])
    [found] = reader(num_logprobs=3).read(output).logprobs
    assert found == TokenLogprobs(9, -4.0, ((2, -0.5), (3, -1.0), (4, -1.0)))
    [found] = reader(num_logprobs=0).read(output).logprobs
    assert found == TokenLogprobs(9, -4.0)
    assert reader().read(output).logprobs == ()


def test_token_without_a_chance_has_a_finite_log_probability() -> None:
    position = {9: FakeLogprob(0.0, 1), 4: FakeLogprob(-math.inf, 2)}
    output = FakeOutput([FakeCompletion((9,), None, [position])])
    [found] = reader(num_logprobs=2).read(output).logprobs
    assert found.top == ((9, 0.0), (4, -9999.0))


def test_log_probabilities_of_the_prompt_begin_with_its_second_token() -> None:
    six, seven = {6: FakeLogprob(-1.0, 5)}, {7: FakeLogprob(-2.0, 1)}
    output = FakeOutput(
        [FakeCompletion((8,))], prompt_token_ids=PROMPT, prompt_logprobs=[None, six, seven]
    )
    expected = TokenLogprobs(6, -1.0), TokenLogprobs(7, -2.0, ((7, -2.0),))
    assert reader(num_prompt_logprobs=1).read(output).prompt_logprobs == expected
    assert reader(1, num_prompt_logprobs=1).read(output).prompt_logprobs == ()
    assert reader().read(output).prompt_logprobs == ()


@pytest.mark.parametrize(
    ("options", "token_ids", "num_valid"),
    [
        ({"allowed_token_ids": frozenset({8, 9})}, (8, 9, 3, 8), 2),
        ({"min_tokens": 3}, (8, 8, STOP, 8), 2),
        ({"min_tokens": 2}, (8, 8, STOP), 3),
        ({"bad_token_sequences": ((8, 9), (3,))}, (9, 8, 8, 9), 3),
        ({"bad_token_sequences": ((3,),)}, (3,), 0),
        ({}, (8, 9), 2),
    ],
)
def test_sequence_ends_before_a_forbidden_token(
    options: dict[str, Any], token_ids: tuple[int, ...], num_valid: int
) -> None:
    subject = reader(num_logprobs=0, **options)
    for position, token_id in enumerate(token_ids):
        logprobs = [{token_id: FakeLogprob(-1.0, 1)}]
        output = subject.read(FakeOutput([FakeCompletion((token_id,), None, logprobs)]))
        is_valid = position < num_valid
        assert output.token_ids == ((token_id,) if is_valid else ())
        assert len(output.logprobs) == len(output.token_ids)
        assert output.finish_reason is (None if is_valid else FinishReason.STOP)
        if not is_valid:
            break


def test_forbidden_token_among_several_ends_the_sequence_before_it() -> None:
    output = reader(bad_token_sequences=((8, 9),)).read(FakeOutput.of(7, 8, 9, 7))
    assert (output.token_ids, output.finish_reason) == ((7, 8), FinishReason.STOP)


CONSTRAINT = FakeConstraint(((8, 9),), STOP)


def test_grammar_that_rejects_a_token_fails_the_request() -> None:
    with pytest.raises(ConstraintFailed):
        reader(constraint=CONSTRAINT).read(FakeOutput.of(8, finish_reason="error"))


def test_grammar_that_other_options_leave_no_token_ends_the_sequence() -> None:
    subject = reader(constraint=CONSTRAINT, bad_token_sequences=((9,),))
    assert subject.read(FakeOutput.of(8)).token_ids == (8,)
    output = subject.read(FakeOutput.of(0, finish_reason="error"))
    assert (output.token_ids, output.finish_reason) == ((), FinishReason.STOP)


@pytest.mark.parametrize(("token_ids", "is_incomplete"), [((8, 9, STOP), False), ((8, STOP), True)])
def test_end_token_before_the_end_of_the_grammar_is_found(
    token_ids: tuple[int, ...], *, is_incomplete: bool
) -> None:
    subject = reader(constraint=CONSTRAINT)
    subject.read(FakeOutput.of(*token_ids, finish_reason="stop"))
    assert subject.is_incomplete() is is_incomplete
    free = reader()
    free.read(FakeOutput.of(*token_ids, finish_reason="stop"))
    assert not free.is_incomplete()


def test_stop_token_of_the_request_may_end_an_incomplete_output() -> None:
    params = SamplingParams(stop_token_ids=frozenset({8}))
    request = Request(PROMPT, params, frozenset({STOP, 8}), constraint=CONSTRAINT)
    subject = SequenceReader(request, 0)
    subject.read(FakeOutput.of(8, finish_reason="stop"))
    assert not subject.is_incomplete()
