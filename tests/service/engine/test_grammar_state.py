from dataclasses import replace

import numpy as np
import pytest

from service.engine.grammar_state import GrammarState
from service.engine.token_rules import TokenMask
from tests.fakes.constraint import FakeConstraint
from tests.service.engine.requests import make_request

END = 0


def grammar_of(*answers: tuple[int, ...], fails_at: int | None = None) -> GrammarState:
    constraint = FakeConstraint(answers, END, fails_at)
    request = make_request(stop_token_ids=frozenset({END}))
    return GrammarState(replace(request, constraint=constraint))


def allowed(masks: list[TokenMask]) -> list[list[int]]:
    return [np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist() for mask in masks]


def test_mask_allows_what_the_grammar_allows() -> None:
    grammar = grammar_of((3, 20), (5,))
    assert allowed(grammar.masks(())) == [[3, 5]]
    grammar.append(3)
    assert allowed(grammar.masks(())) == [[20]]
    grammar.append(20)
    assert allowed(grammar.masks(())) == [[END]]
    grammar.append(END)
    assert allowed(grammar.masks(())) == [[]]


def test_masks_of_a_draft_do_not_advance_the_matcher() -> None:
    grammar = grammar_of((3, 4, 5), (3, 6))
    assert allowed(grammar.masks((3, 4, 5))) == [[3], [4, 6], [5], [END]]
    grammar.append(3)
    assert allowed(grammar.masks((6,))) == [[4, 6], [END]]


@pytest.mark.parametrize("draft", [(3, 9, 5), (3, 9), (3, 900), (3,)])
def test_masks_end_at_a_forbidden_draft_token(draft: tuple[int, ...]) -> None:
    grammar = grammar_of((3, 4, 5))
    assert allowed(grammar.masks(draft)) == [[3], [4]]
    grammar.append(3)
    assert allowed(grammar.masks(())) == [[4]]


def test_masks_end_after_a_stop_token_in_the_draft() -> None:
    assert allowed(grammar_of((3,)).masks((3, END, 5))) == [[3], [END]]


def test_forced_tokens_are_returned_between_steps() -> None:
    grammar = grammar_of((3, 4, 5), (3, 4, 6))
    assert grammar.forced_tokens() == (3, 4)
    grammar.append(3)
    grammar.append(4)
    assert grammar.forced_tokens() == ()
    grammar.append(5)
    assert grammar.forced_tokens() == (END,)


def test_error_of_a_matcher_is_raised_by_each_later_call() -> None:
    grammar = grammar_of((3, 4, 5), fails_at=1)
    grammar.append(3)
    assert grammar.forced_tokens() == ()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            grammar.masks(())


def test_failure_within_a_draft_only_shortens_the_masks() -> None:
    grammar = grammar_of((3, 4, 5), fails_at=2)
    assert len(grammar.masks((3, 4, 5))) == 2
    assert len(grammar.masks((3,))) == 2
