import itertools
from collections import Counter

import pytest

from service.domain.engine import FinishReason, Request
from service.domain.sampling import SamplingParams
from service.engine.sequence import Sequence, SequenceStatus
from tests.service.engine.requests import make_request


def test_new_sequence_contains_its_prompt() -> None:
    sequence = Sequence(7, make_request((3, 1, 4)), max_model_len=100)
    assert sequence.request_id == 7
    assert sequence.status is SequenceStatus.WAITING
    assert sequence.token_ids == [3, 1, 4]
    assert (sequence.num_tokens, sequence.num_prompt_tokens) == (3, 3)
    assert (sequence.num_output_tokens, sequence.num_uncomputed_tokens) == (0, 3)
    assert sequence.finish_reason is None


def test_append_does_not_touch_the_request() -> None:
    request = make_request((3, 1, 4))
    Sequence(0, request, max_model_len=100).append(1)
    assert request.prompt_token_ids == (3, 1, 4)


@pytest.mark.parametrize(
    ("wanted", "room", "max_tokens"), [(None, 10, 10), (5, 10, 5), (50, 10, 10), (10, 10, 10)]
)
def test_max_tokens_is_what_is_wanted_within_the_context(
    wanted: int | None, room: int, max_tokens: int
) -> None:
    sequence = Sequence(0, make_request(6, max_tokens=wanted), max_model_len=6 + room)
    assert sequence.max_tokens == max_tokens


def test_last_token_finishes_by_length() -> None:
    sequence = Sequence(0, make_request(3, max_tokens=2), max_model_len=100)
    sequence.append(1)
    reasons = [sequence.finish_reason]
    sequence.append(2)
    reasons.append(sequence.finish_reason)
    assert reasons == [None, FinishReason.LENGTH]
    assert sequence.num_output_tokens == 2


def test_stop_token_finishes_and_is_kept() -> None:
    request = make_request(3, max_tokens=9, stop_token_ids=frozenset({42}))
    sequence = Sequence(0, request, max_model_len=100)
    sequence.append(42)
    assert sequence.finish_reason is FinishReason.STOP
    assert sequence.token_ids[-1] == 42


def test_stop_token_at_the_length_limit_is_a_stop() -> None:
    request = make_request(3, max_tokens=1, stop_token_ids=frozenset({42}))
    sequence = Sequence(0, request, max_model_len=100)
    sequence.append(42)
    assert sequence.finish_reason is FinishReason.STOP


def test_stop_tokens_in_the_prompt_mean_nothing() -> None:
    request = make_request((42, 42), stop_token_ids=frozenset({42}))
    assert Sequence(0, request, max_model_len=100).finish_reason is None


def test_extend_stops_at_the_token_that_finishes() -> None:
    request = make_request(3, max_tokens=4, stop_token_ids=frozenset({42}))
    sequence = Sequence(0, request, max_model_len=100)
    assert sequence.extend((7, 42, 8)) == 2
    assert sequence.token_ids[3:] == [7, 42]
    assert sequence.finish_reason is FinishReason.STOP
    sequence = Sequence(0, request, max_model_len=100)
    assert (sequence.extend((7, 7, 7)), sequence.extend((7, 7, 7))) == (3, 1)
    assert sequence.finish_reason is FinishReason.LENGTH


def test_draws_are_spread_evenly_and_asked_for_in_any_order() -> None:
    sequence = Sequence(0, Request((1,), SamplingParams(seed=5)), max_model_len=10)
    draws = [sequence.draw(position) for position in range(10_000)]
    assert sequence.draw(17) == draws[17]
    assert 0.0 <= min(draws) < 0.001
    assert 0.999 < max(draws) < 1.0
    tenths = Counter(int(10 * draw) for draw in draws)
    assert all(abs(count - 1000) < 150 for count in tenths.values())  # five standard deviations
    steps = [b - a for a, b in itertools.pairwise(draws)]
    assert abs(sum(steps) / len(steps)) < 0.001
    assert abs(sum(step > 0 for step in steps) - 5000) < 250


def test_draws_depend_only_on_seed_index_and_position() -> None:
    def draws(sequence_id: int, seed: int | None) -> list[float]:
        request = Request((1,), SamplingParams(seed=seed))
        sequence = Sequence(sequence_id, request, max_model_len=10)
        return [sequence.draw(position) for position in range(3)]

    assert draws(0, 5) == draws(1, 5)
    assert draws(0, 5) != draws(0, -5)
    assert draws(0, 5) != draws(0, 6)
    assert draws(0, None) != draws(0, None)
