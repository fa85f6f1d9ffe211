from dataclasses import replace

import numpy as np
import pytest

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.token_rules import RowRules, TokenRules
from tests.fakes.constraint import FakeConstraint
from tests.service.engine.requests import make_request

PLAIN = make_request((7, 8, 7))


def rules_of(request: Request, *output: int) -> TokenRules:
    rules = TokenRules.of(request)
    assert rules is not None
    for token_id in output:
        rules.append(token_id)
    return rules


def with_params(**params: object) -> Request:
    return replace(PLAIN, sampling=SamplingParams(**params))  # type: ignore[arg-type]  # by name


def next_row(request: Request, *output: int) -> RowRules:
    [row] = rules_of(request, *output).rows(())
    return row


@pytest.mark.parametrize(
    "request_",
    [
        PLAIN,
        with_params(temperature=0.5, top_p=0.9, top_k=4, min_p=0.1, seed=3, max_tokens=4),
        replace(PLAIN, stop_token_ids=frozenset({1}), n=3, priority=2),
        replace(PLAIN, num_logprobs=5, num_prompt_logprobs=5),
    ],
)
def test_most_requests_have_none(request_: Request) -> None:
    assert TokenRules.of(request_) is None


@pytest.mark.parametrize(
    "request_",
    [
        with_params(presence_penalty=0.1),
        with_params(frequency_penalty=-0.1),
        with_params(repetition_penalty=1.1),
        with_params(logit_bias={3: 1.0}),
        with_params(min_tokens=1),
        with_params(allowed_token_ids=frozenset()),
        replace(PLAIN, bad_token_sequences=((1,),)),
        replace(PLAIN, constraint=FakeConstraint(((1,),), end=0)),
    ],
)
def test_each_option_makes_some(request_: Request) -> None:
    assert TokenRules.of(request_) is not None


def test_penalties_count_the_output_and_not_the_prompt() -> None:
    row = next_row(with_params(presence_penalty=1.0), 8, 9, 8)
    assert row.counted is not None
    assert row.counted.token_ids.tolist() == [8, 9]
    assert row.counted.counts.tolist() == [2, 1]


def test_repetition_penalty_counts_the_prompt_too() -> None:
    row = next_row(with_params(repetition_penalty=1.5), 8, 9, 8)
    assert row.counted is not None
    assert row.counted.token_ids.tolist() == [7, 8, 9]
    assert row.counted.counts.tolist() == [0, 2, 1]


def test_rows_of_a_draft_count_its_tokens_temporarily() -> None:
    rules = rules_of(with_params(frequency_penalty=1.0), 4)
    rows = rules.rows((5, 4))
    counted = [
        dict(zip(r.counted.token_ids.tolist(), r.counted.counts.tolist(), strict=True))
        for r in rows
        if r.counted is not None
    ]
    assert counted == [{4: 1}, {4: 1, 5: 1}, {4: 2, 5: 1}]
    [again] = rules.rows(())
    assert again.counted is not None
    assert again.counted.token_ids.tolist() == [4]


def test_stop_token_is_banned_before_min_tokens_also_in_a_draft() -> None:
    request = replace(with_params(min_tokens=2), stop_token_ids=frozenset({1, 2}))
    assert [sorted(r.banned_token_ids) for r in rules_of(request).rows((5, 5))] == [
        [1, 2],
        [1, 2],
        [],
    ]
    assert list(next_row(request, 5, 5).banned_token_ids) == []


@pytest.mark.parametrize(
    ("output", "banned"),
    [
        ((), [9]),
        ((3,), [4, 9]),
        ((3, 4), [9]),
        ((4, 3), [4, 9]),
        ((3, 3), [4, 5, 9]),
        ((3, 3, 3), [4, 5, 9]),
    ],
)
def test_last_token_of_a_bad_sequence_is_banned_after_the_others(
    output: tuple[int, ...], banned: list[int]
) -> None:
    request = replace(PLAIN, bad_token_sequences=((9,), (3, 4), (3, 3, 5), (7, 6)))
    assert sorted(next_row(request, *output).banned_token_ids) == banned


def test_bad_sequence_does_not_begin_in_the_prompt() -> None:
    request = replace(PLAIN, bad_token_sequences=((7, 6),))
    assert list(next_row(request).banned_token_ids) == []
    assert list(next_row(request, 7).banned_token_ids) == [6]


def test_bad_sequence_across_a_draft_is_banned() -> None:
    request = replace(PLAIN, bad_token_sequences=((3, 4),))
    assert [list(r.banned_token_ids) for r in rules_of(request).rows((3, 5))] == [[], [4], []]


def test_mask_has_the_bits_of_the_allowed_tokens() -> None:
    row = next_row(with_params(allowed_token_ids=frozenset({1, 4})))
    assert [mask.tolist() for mask in row.masks] == [[0b10010]]
    row = next_row(with_params(allowed_token_ids=frozenset()))
    assert [mask.tolist() for mask in row.masks] == [[]]


def test_rows_without_a_mask_of_the_grammar_are_left_out() -> None:
    request = replace(PLAIN, constraint=FakeConstraint(((1,),), end=0))
    mask = np.full(1, 0xFF, dtype=np.uint8)
    rules = rules_of(request)
    rows = rules.rows((1, 2, 3), [mask, mask])
    assert [r.masks for r in rows] == [(mask,), (mask,)]
    assert rules.rows((), [mask])[0].is_masked
