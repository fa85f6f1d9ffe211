"""The probabilities of options, compared with sums over all responses of a small model."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.generation.option_tree import EqualOptions, OptionTree, Path

_TOKENS = range(3)
_MAX_LENGTH = 4

FORMS = st.lists(st.sampled_from(_TOKENS), min_size=1, max_size=_MAX_LENGTH).map(tuple)
OPTIONS = st.lists(FORMS, min_size=2, max_size=8, unique=True)


def conditional(seed: int, before: Path) -> list[float]:
    """Return the model's probabilities of the tokens after `before`."""
    weights = [random.Random(f"{seed} {before} {token}").random() + 1e-3 for token in _TOKENS]
    return [weight / sum(weights) for weight in weights]


def probability(seed: int, response: Path) -> float:
    return math.prod(conditional(seed, response[:i])[token] for i, token in enumerate(response))


def logprobs(seed: int, tree: OptionTree) -> dict[Path, float]:
    return {edge: math.log(conditional(seed, edge[:-1])[edge[-1]]) for edge in tree.edges}


@given(OPTIONS, st.integers(0, 1000))
def test_probabilities_are_those_of_responses_that_begin_with_an_option(
    forms: list[Path], seed: int
) -> None:
    totals = dict.fromkeys(forms, 0.0)
    for response in itertools.product(_TOKENS, repeat=_MAX_LENGTH):
        begun = [form for form in forms if response[: len(form)] == form]
        if begun:
            totals[max(begun, key=len)] += probability(seed, response)

    tree = OptionTree([[form] for form in forms])
    scored = tree.scored(logprobs(seed, tree))

    whole = sum(totals.values())
    for form, option in zip(forms, scored, strict=True):
        assert option.probability == pytest.approx(totals[form] / whole, abs=1e-9)
        assert math.exp(option.logprob) == pytest.approx(totals[form], abs=1e-9)
    assert sum(option.probability for option in scored) == pytest.approx(1)


@given(OPTIONS, st.integers(0, 1000))
def test_forms_of_one_option_are_summed(forms: list[Path], seed: int) -> None:
    apart = OptionTree([[form] for form in forms])
    together = OptionTree([forms[:2], *([form] for form in forms[2:])])

    of_each = [option.probability for option in apart.scored(logprobs(seed, apart))]
    of_all = [option.probability for option in together.scored(logprobs(seed, together))]

    assert of_all == pytest.approx([of_each[0] + of_each[1], *of_each[2:]])


def test_edges_have_shared_beginnings_once() -> None:
    tree = OptionTree([[(1, 2, 3)], [(1, 2, 4)], [(1, 2)]])

    assert sorted(tree.edges) == [(1,), (1, 2), (1, 2, 3), (1, 2, 4)]


def test_equal_forms_of_two_options_are_rejected() -> None:
    with pytest.raises(EqualOptions) as raised:
        OptionTree([[(1,)], [(2,)], [(3,), (1,)]])

    assert (raised.value.first, raised.value.second) == (0, 2)


def test_tiny_probabilities_do_not_underflow() -> None:
    tree = OptionTree([[(1,)], [(2,)]])

    scored = tree.scored({(1,): -2000.0, (2,): -2000.0 + math.log(3)})

    assert [option.probability for option in scored] == pytest.approx([0.25, 0.75])


def test_impossible_options_are_equally_likely() -> None:
    tree = OptionTree([[(1,)], [(2,)]])

    scored = tree.scored({(1,): -math.inf, (2,): -math.inf})

    assert [option.probability for option in scored] == [0.5, 0.5]


def test_longer_form_with_all_of_the_probability_leaves_none() -> None:
    tree = OptionTree([[(1,)], [(1, 2)]])

    scored = tree.scored({(1,): -1.0, (1, 2): 0.0})

    assert [option.probability for option in scored] == [0.0, 1.0]
