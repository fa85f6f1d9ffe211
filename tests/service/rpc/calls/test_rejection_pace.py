"""Delays of rejections, for each caller."""

import pytest

from service.rpc.calls.rejection_pace import MAX_DELAY_S, RATE, RejectionPace


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_rejections_above_the_rate_are_delayed(clock: Clock) -> None:
    pace = RejectionPace(clock)
    delays = [pace.delay_s("a") for _ in range(RATE + 3)]
    assert delays[: RATE + 1] == [0.0] * (RATE + 1)
    assert delays[RATE + 1 :] == pytest.approx([1 / RATE, 2 / RATE])


def test_delay_of_a_rejection_is_at_most_the_maximum(clock: Clock) -> None:
    pace = RejectionPace(clock)
    assert max(pace.delay_s("a") for _ in range(100 * RATE)) == pytest.approx(MAX_DELAY_S)


def test_callers_do_not_delay_one_another(clock: Clock) -> None:
    pace = RejectionPace(clock)
    for _ in range(10 * RATE):
        pace.delay_s("a")
    assert pace.delay_s("b") == 0.0


def test_rejections_after_a_pause_are_not_delayed(clock: Clock) -> None:
    pace = RejectionPace(clock)
    for _ in range(3 * RATE):
        pace.delay_s("a")
    clock.now_s += 2 * MAX_DELAY_S
    assert [pace.delay_s("a") for _ in range(RATE)] == [0.0] * RATE


def test_callers_without_recent_rejections_are_removed(clock: Clock) -> None:
    pace = RejectionPace(clock)
    for number in range(1024):
        pace.delay_s(str(number))
    clock.now_s += 10.0
    pace.delay_s("new")
    assert len(pace._next_s) == 1
