import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_process.fairness.capacity import SharedCapacity


def fill(shared: SharedCapacity, caller: str, weight: int = 1) -> int:
    """Take amounts of 1 until there is no room. Return their number."""
    num_taken = 0
    while shared.has_room(caller, 1, weight):
        shared.take(caller, 1)
        num_taken += 1
    return num_taken


def test_one_caller_stops_at_half_and_two_leave_a_third() -> None:
    shared = SharedCapacity(120)
    assert fill(shared, "a") == 60
    assert fill(shared, "b") == 30  # half of the part that "a" has not taken
    assert shared.num_free == 30


def test_weight_allows_a_multiple_of_the_free_part() -> None:
    assert fill(SharedCapacity(120), "a", weight=3) == 90


def test_caller_without_a_name_may_take_everything() -> None:
    assert fill(SharedCapacity(120), "") == 120


def test_first_amount_is_granted_if_it_fits() -> None:
    shared = SharedCapacity(10)
    assert shared.has_room("a", 10)
    assert not shared.has_room("a", 11)


@pytest.mark.parametrize("num_callers", [1, 2, 6])
def test_greedy_callers_leave_room_for_one_more(num_callers: int) -> None:
    shared = SharedCapacity(288)
    for _ in range(3):
        for i in range(num_callers):
            fill(shared, f"greedy-{i}")
    assert shared.has_room("another", 1)


@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.integers(-5, 9)), max_size=60))
def test_count_is_never_above_the_capacity(
    operations: list[tuple[str, int]],
) -> None:
    shared = SharedCapacity(20)
    held = dict.fromkeys(("", "a", "b"), 0)
    for caller, amount in operations:
        if amount > 0 and shared.has_room(caller, amount):
            shared.take(caller, amount)
            held[caller] += amount
        elif amount < 0 and held[caller] >= -amount:
            shared.release(caller, -amount)
            held[caller] += amount
        assert {name: shared.held_by(name) for name in held} == held
        assert shared.num_used == sum(held.values()) <= 20
