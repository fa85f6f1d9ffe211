"""The detection of an engine without progress."""

from service.streams.hang_detector import HangDetector


def test_steps_and_idle_times_are_no_hang() -> None:
    detector = HangDetector(timeout_s=2.0)
    assert detector.interval_s == 0.5
    assert not any(detector.check(i, is_idle=False) for i in range(10))
    assert not any(detector.check(10, is_idle=True) for _ in range(10))


def test_work_without_a_step_for_the_timeout_is_a_hang() -> None:
    detector = HangDetector(timeout_s=2.0)
    assert [detector.check(1, is_idle=False) for _ in range(5)] == [False] * 4 + [True]
    assert detector.stuck_s == 2.0
    assert not detector.check(2, is_idle=False)


def test_checks_are_at_most_one_second_apart() -> None:
    assert HangDetector(timeout_s=120.0).interval_s == 1.0
