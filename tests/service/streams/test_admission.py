import pytest

from service.domain.engine import Caller
from service.errors import DeadlinePassed, QueueFull
from service.streams.admission import Admission

ANYBODY = Caller()


def enter(
    admission: Admission, now: float, deadline: float | None = None, caller: Caller = ANYBODY
) -> None:
    admission.enter(caller, 1, now)
    try:
        admission.check_deadline(caller, 1, deadline, now)
    except DeadlinePassed:
        admission.leave(caller, 1)
        raise


def leave(admission: Admission, now: float, caller: Caller = ANYBODY) -> None:
    admission.note_end(1, now)
    admission.leave(caller, 1)


def fill(admission: Admission, caller: Caller) -> int:
    """Admit requests until there is no room. Return their number."""
    num_inside = 0
    while True:
        try:
            enter(admission, now=0.0, caller=caller)
        except QueueFull:
            return num_inside
        num_inside += 1


def test_limit_is_running_slots_plus_queue_size() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=3)
    for _ in range(5):
        enter(admission, now=0.0)
    with pytest.raises(QueueFull) as caught:
        enter(admission, now=0.0)
    assert caught.value.retry_after_s == 1.0
    leave(admission, now=0.0)
    enter(admission, now=0.0)


def test_queue_of_size_zero_admits_only_what_can_run() -> None:
    admission = Admission(max_num_seqs=1, max_queue_size=0)
    enter(admission, now=0.0)
    with pytest.raises(QueueFull):
        enter(admission, now=0.0)


def test_passed_deadline_is_rejected() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=2)
    with pytest.raises(DeadlinePassed):
        enter(admission, now=10.0, deadline=10.0)
    enter(admission, now=10.0, deadline=10.1)


def test_estimated_wait_with_a_free_slot_is_zero() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=2)
    assert admission.estimated_wait_s(ANYBODY) == 0.0
    enter(admission, now=0.0)
    assert admission.estimated_wait_s(ANYBODY) == 0.0


def steady(admission: Admission, gap_s: float, times: int, now: float = 0.0) -> float:
    """Let one request leave and one arrive every `gap_s` seconds. Return the time at the end."""
    for _ in range(times):
        now += gap_s
        leave(admission, now=now)
        enter(admission, now)
    return now


def test_estimated_wait_is_sequences_ahead_times_mean_gap() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=10)
    for _ in range(5):  # 2 run, 3 wait
        enter(admission, now=0.0)
    now = steady(admission, gap_s=2.0, times=60)
    assert admission.estimated_wait_s(ANYBODY) == pytest.approx(8.0, rel=0.01)
    with pytest.raises(DeadlinePassed):
        enter(admission, now, deadline=now + 7.5)
    enter(admission, now, deadline=now + 8.5)
    assert admission.estimated_wait_s(ANYBODY) == pytest.approx(10.0, rel=0.01)


def test_full_queue_returns_the_estimated_wait() -> None:
    admission = Admission(max_num_seqs=1, max_queue_size=1)
    enter(admission, now=0.0)
    enter(admission, now=0.0)
    now = steady(admission, gap_s=5.0, times=60)
    with pytest.raises(QueueFull) as caught:
        enter(admission, now)
    assert caught.value.retry_after_s == pytest.approx(10.0, rel=0.01)


def test_time_without_work_is_no_gap() -> None:
    admission = Admission(max_num_seqs=1, max_queue_size=5)
    for hour in range(20):
        enter(admission, now=hour * 3600.0)
        leave(admission, now=hour * 3600.0 + 1.0)
    enter(admission, now=1e6)
    assert admission.estimated_wait_s(ANYBODY) <= 1.0


def test_estimate_that_rejects_all_requests_is_corrected() -> None:
    """After a slow hour the estimate is long. Quick requests must correct it without a queue."""
    admission = Admission(max_num_seqs=1, max_queue_size=5)
    enter(admission, now=0.0)
    enter(admission, now=0.0)
    now = steady(admission, gap_s=60.0, times=40)
    leave(admission, now=now)
    leave(admission, now=now)
    for _ in range(40):  # requests are quick now, and there is no queue
        enter(admission, now)
        now += 0.1
        leave(admission, now=now)
    enter(admission, now)
    enter(admission, now, deadline=now + 1.0)


def test_time_goes_on_for_a_queue_that_has_emptied() -> None:
    """If a request leaves below the limit, no gap is measured until all slots are used again."""
    admission = Admission(max_num_seqs=2, max_queue_size=2)
    enter(admission, now=0.0)
    enter(admission, now=100.0)
    leave(admission, now=101.0)
    leave(admission, now=500.0)
    enter(admission, now=600.0)
    enter(admission, now=600.0)
    assert admission.estimated_wait_s(ANYBODY) <= 1.0


def test_each_sequence_of_a_request_takes_a_place() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=3)
    admission.enter(ANYBODY, 4, now=0.0)
    with pytest.raises(QueueFull):
        admission.enter(ANYBODY, 2, now=0.0)
    enter(admission, now=0.0)
    with pytest.raises(QueueFull):
        enter(admission, now=0.0)
    admission.leave(ANYBODY, 4)
    assert admission.num_inside == 1


def test_places_that_become_free_together_are_as_many_gaps() -> None:
    """Four requests that leave together every 8 s count as one every 2 s."""
    admission = Admission(max_num_seqs=4, max_queue_size=10)
    admission.enter(ANYBODY, 4, now=0.0)
    now = 0.0
    for _ in range(30):
        now += 8.0
        admission.note_end(4, now)
        admission.leave(ANYBODY, 4)
        admission.enter(ANYBODY, 4, now)
    assert admission.estimated_wait_s(ANYBODY) == pytest.approx(2.0, rel=0.01)


def test_one_caller_fills_half_of_the_queue_and_another_still_gets_in() -> None:
    admission = Admission(max_num_seqs=32, max_queue_size=256)
    assert fill(admission, Caller("a")) == 160  # 32 running and 128 waiting requests
    assert fill(admission, Caller("b")) > 64
    enter(admission, now=0.0, caller=Caller("c"))


def test_caller_without_a_queue_has_all_slots() -> None:
    assert fill(Admission(max_num_seqs=32, max_queue_size=0), Caller("a")) == 32


def test_rejection_distinguishes_full_queue_and_full_share() -> None:
    admission = Admission(max_num_seqs=2, max_queue_size=6)
    fill(admission, Caller("a"))
    with pytest.raises(QueueFull, match="This caller has its share"):
        enter(admission, now=0.0, caller=Caller("a"))
    fill(admission, ANYBODY)
    with pytest.raises(QueueFull, match="The waiting queue is full"):
        enter(admission, now=0.0, caller=Caller("b"))


def test_wait_of_a_caller_below_its_share_is_none() -> None:
    admission = Admission(max_num_seqs=4, max_queue_size=100)
    busy, other = Caller("a"), Caller("b")
    for _ in range(40):
        enter(admission, now=0.0, caller=busy)
    now = 0.0
    for _ in range(60):
        now += 2.0
        leave(admission, now, busy)
        enter(admission, now, caller=busy)
    assert admission.estimated_wait_s(busy) == pytest.approx(74.0, rel=0.01)
    enter(admission, now, deadline=now + 0.1, caller=other)
    enter(admission, now, deadline=now + 0.1, caller=other)  # the caller's share is two slots
    # Two requests of the same caller precede the third, and one of the other caller is in between.
    assert admission.estimated_wait_s(other) == pytest.approx(4.0, rel=0.01)
