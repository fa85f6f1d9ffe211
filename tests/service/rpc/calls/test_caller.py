"""The caller of the current task, and the reservation of tokens for its call."""

import pytest

from service.domain.backend import Prompt
from service.domain.engine import Caller
from service.rpc.calls.caller import acting_for, current_caller, may_use_model, reserve_exactly

ONE, OTHER = Caller("one", 2, "one", 0), Caller("other")


def test_caller_outside_of_a_call_has_no_name_and_may_use_every_model() -> None:
    assert current_caller() == Caller()
    assert may_use_model("any")
    reserve_exactly([Prompt(num_tokens=2)], 1, None, 100)


def test_caller_is_current_only_in_its_context() -> None:
    with acting_for(ONE, lambda name: name == "alias"):
        with acting_for(OTHER):
            assert current_caller() == OTHER
            assert may_use_model("any")
        assert current_caller() == ONE
        assert may_use_model("id", "alias")
        assert not may_use_model("id")
    assert current_caller() == Caller()


@pytest.mark.parametrize(
    ("max_tokens", "n", "num_tokens"),
    [(5, 1, 10 + 5), (5, 3, 10 + 15), (None, 1, 100), (1000, 2, 10 + 2 * 90)],
)
def test_reservation_is_the_prompt_and_the_maximum_output(
    max_tokens: int | None, n: int, num_tokens: int
) -> None:
    reserved: list[int] = []
    prompt = Prompt(num_tokens=10)
    with acting_for(ONE, reserve=reserved.append):
        reserve_exactly([prompt], n, max_tokens, 100)
        reserve_exactly([prompt, prompt], n, max_tokens, 100)
    assert reserved == [num_tokens, 2 * num_tokens]


def test_prompt_of_unknown_length_does_not_change_the_reservation() -> None:
    reserved: list[int] = []
    with acting_for(ONE, reserve=reserved.append):
        reserve_exactly([Prompt()], 1, 5, 100)
    assert not reserved
