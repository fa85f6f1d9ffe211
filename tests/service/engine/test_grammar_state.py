from dataclasses import replace

import numpy as np
import pytest

from service.engine.grammar_state import GrammarState
from service.engine.token_rules import Forbidden
from tests.fakes.constraint import FakeConstraint
from tests.service.engine.requests import make_request

END = 0


def grammar_of(*answers: tuple[int, ...], fails_at: int | None = None) -> GrammarState:
    constraint = FakeConstraint(answers, END, fails_at)
    request = make_request(stop_token_ids=frozenset({END}))
    return GrammarState(replace(request, constraint=constraint))


def allowed(masks: list[Forbidden]) -> list[list[int]]:
    return [np.flatnonzero(~mask).tolist() for mask in masks]


def test_it_says_what_cannot_come_next() -> None:
    grammar = grammar_of((3, 20), (5,))
    assert allowed(grammar.masks(())) == [[3, 5]]
    grammar.append(3)
    assert allowed(grammar.masks(())) == [[20]]
    grammar.append(20)
    assert allowed(grammar.masks(())) == [[END]]
    grammar.append(END)
    assert allowed(grammar.masks(())) == [[]]


def test_a_draft_is_followed_and_taken_back() -> None:
    grammar = grammar_of((3, 4, 5), (3, 6))
    assert allowed(grammar.masks((3, 4, 5))) == [[3], [4, 6], [5], [END]]
    grammar.append(3)
    assert allowed(grammar.masks((6,))) == [[4, 6], [END]]


@pytest.mark.parametrize("draft", [(3, 9, 5), (3, 9), (3, 900), (3,)])
def test_a_draft_ends_where_it_is_not_allowed(draft: tuple[int, ...]) -> None:
    grammar = grammar_of((3, 4, 5))
    assert allowed(grammar.masks(draft)) == [[3], [4]]
    grammar.append(3)
    assert allowed(grammar.masks(())) == [[4]]


def test_a_draft_ends_where_it_ends_the_answer() -> None:
    assert allowed(grammar_of((3,)).masks((3, END, 5))) == [[3], [END]]


def test_what_is_forced_is_known_before() -> None:
    grammar = grammar_of((3, 4, 5), (3, 4, 6))
    assert grammar.forced_tokens() == (3, 4)
    grammar.append(3)
    grammar.append(4)
    assert grammar.forced_tokens() == ()
    grammar.append(5)
    assert grammar.forced_tokens() == (END,)


def test_what_a_matcher_raises_is_raised_by_masks_and_ever_after() -> None:
    grammar = grammar_of((3, 4, 5), fails_at=1)
    grammar.append(3)
    assert grammar.forced_tokens() == ()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            grammar.masks(())


def test_a_draft_that_fails_ends_there_and_fails_no_answer() -> None:
    grammar = grammar_of((3, 4, 5), fails_at=2)
    assert len(grammar.masks((3, 4, 5))) == 2
    assert len(grammar.masks((3,))) == 2
