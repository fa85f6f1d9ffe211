from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_process.fairness.queue import FairQueue


@dataclass(frozen=True)
class Item:
    caller: str
    arrival: int
    priority: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        return self.priority, self.arrival


def queue_of(*items: Item, max_overtakes: int = 100, weight: int = 1) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue(max_overtakes)
    for item in items:
        queue.push(item.caller, weight, item)
    return queue


def drained(queue: FairQueue[Item]) -> list[Item]:
    popped = []
    while len(queue):
        first = queue.first()
        popped.append(queue.pop())
        assert popped[-1] is first
    assert queue.first() is None
    return popped


def test_callers_take_turns_whatever_they_have_queued() -> None:
    items = [Item("a", i) for i in range(4)] + [Item("b", 4), Item("b", 5), Item("c", 6)]
    order = [item.caller for item in drained(queue_of(*items))]
    assert order == ["a", "b", "c", "a", "b", "a", "a"]


def test_first_item_of_a_new_caller_waits_for_one_turn_of_each_other() -> None:
    queue = queue_of(*(Item("a", i) for i in range(1000)))
    queue.pop()
    queue.push("b", 1, Item("b", 1000))
    assert [queue.pop().caller, queue.pop().caller] == ["a", "b"]


def test_weight_is_the_number_of_items_in_a_turn() -> None:
    queue = queue_of(*(Item("a", i) for i in range(6)))
    for i in range(6, 12):
        queue.push("b", 3, Item("b", i))
    assert [item.caller for item in drained(queue)] == list("abbbabbbaaaa")


def test_lower_rank_comes_first_within_a_caller_only() -> None:
    queue = queue_of(Item("a", 0), Item("b", 1, priority=5), Item("a", 2, priority=-9))
    assert [item.arrival for item in drained(queue)] == [2, 1, 0]


def test_oldest_item_is_overtaken_no_more_often_than_allowed() -> None:
    queue = queue_of(Item("a", 0, priority=9), max_overtakes=3)
    popped = []
    for arrival in range(1, 20):
        queue.push("a", 1, Item("a", arrival))
        popped.append(queue.pop().arrival)
    assert popped.index(0) == 3


def test_removed_item_is_never_returned() -> None:
    queue = queue_of(first := Item("a", 0), Item("b", 1), last := Item("a", 2))
    queue.remove(first)
    assert first not in queue
    assert list(queue) == [last, Item("b", 1)]
    with pytest.raises(ValueError, match="not in the queue"):
        queue.remove(first)


def test_caller_whose_last_item_is_removed_leaves_the_rotation() -> None:
    queue = queue_of(only := Item("a", 0), Item("b", 1))
    queue.remove(only)
    assert list(queue.weights) == ["b"]
    queue.push("a", 1, Item("a", 2))
    assert list(queue.weights) == ["b", "a"]


def test_caller_that_is_served_out_of_turn_goes_to_the_end() -> None:
    queue = queue_of(Item("a", 0), Item("a", 1), Item("b", 2), Item("b", 3), Item("c", 4))
    assert queue.first("b") == queue.pop("b") == Item("b", 2)
    assert queue.first("d") is None
    assert [item.arrival for item in drained(queue)] == [0, 4, 3, 1]


_operations = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from("abcd"), st.integers(-2, 2)),
        st.tuples(st.just("pop"), st.just(""), st.just(0)),
        st.tuples(st.just("remove"), st.just(""), st.integers(0, 50)),
    ),
    max_size=80,
)


@given(_operations, st.integers(0, 4), st.integers(1, 3))
def test_queue_returns_each_item_once_and_starves_no_caller(
    operations: list[tuple[str, str, int]], max_overtakes: int, weight: int
) -> None:
    queue: FairQueue[Item] = FairQueue(max_overtakes)
    inside: list[Item] = []
    turns_without: Counter[str] = Counter()  # pops of others since a caller was last served
    for arrival, (operation, caller, number) in enumerate(operations):
        if operation == "push":
            inside.append(Item(caller, arrival, number))
            queue.push(caller, weight, inside[-1])
        elif operation == "remove" and inside:
            item = inside.pop(number % len(inside))
            queue.remove(item)
            if item.caller not in queue.weights:
                del turns_without[item.caller]
        elif operation == "pop" and inside:
            item = queue.pop()
            inside.remove(item)
            del turns_without[item.caller]
            for other in queue.weights:
                turns_without[other] += other != item.caller
                # There are at most three other callers, and each has one turn.
                assert turns_without[other] <= 3 * weight
        assert sorted(queue, key=lambda i: i.arrival) == sorted(inside, key=lambda i: i.arrival)
        assert len(queue) == len(inside)
