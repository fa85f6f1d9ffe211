import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.speculation import PromptLookup, accept


def test_tokens_after_an_earlier_occurrence_are_proposed() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 9, 2, 3], limit=2) == (4, 5)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 1, 4, 3]])
def test_tokens_without_earlier_occurrence_have_no_draft(token_ids: list[int]) -> None:
    assert PromptLookup().propose(token_ids, limit=8) == ()


def test_latest_of_equal_matches_is_chosen() -> None:
    assert PromptLookup().propose([1, 2, 3, 0, 1, 2, 4, 0, 5, 1, 2], limit=1) == (4,)


def test_longest_match_is_chosen_before_the_latest() -> None:
    assert PromptLookup().propose([0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2], limit=1) == (3,)


def test_draft_that_reaches_the_end_repeats() -> None:
    assert PromptLookup().propose([0, 7, 8, 9, 7, 8], limit=7) == (9, 7, 8, 9, 7, 8, 9)
    assert PromptLookup().propose([7, 7, 7], limit=3) == (7, 7, 7)


def test_tokens_may_grow_by_any_number() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    assert lookup.propose(text[:1], limit=1) == ()
    assert lookup.propose(text[:2], limit=1) == ()
    assert lookup.propose(text[:6], limit=1) == ()
    assert lookup.propose(text, limit=1) == (3,)
    assert lookup.propose([*text, 3], limit=1) == (4,)


def test_limit_of_zero_gives_no_draft() -> None:
    assert PromptLookup().propose([7, 7, 7], limit=0) == ()
    assert PromptLookup().propose([7, 7, 7], limit=-3) == ()


def test_draft_length_depends_on_the_last_accepted_tokens() -> None:
    lookup, text = PromptLookup(), [7] * 9
    lengths = [len(lookup.propose(text, limit=8))]
    for num_accepted in (1, 3, 8, 2):
        lookup.record(num_accepted)
        lengths.append(len(lookup.propose(text, limit=8)))
    assert lengths == [8, 3, 7, 8, 5]


def test_failures_in_a_row_make_drafts_rare_and_a_success_ends_that() -> None:
    lookup, text = PromptLookup(), [7] * 9
    gaps: list[int] = []
    gap = 0
    while len(gaps) < 8:
        if lookup.propose(text, limit=8):
            gaps.append(gap)
            gap = 0
            lookup.record(0)
        else:
            gap += 1
    assert gaps == [0, 1, 3, 7, 15, 31, 31, 31]
    lookup.record(2)
    assert len(lookup.propose(text, limit=8)) == 5


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 6), st.integers(1, 9))
def test_incremental_drafts_equal_those_of_the_definition(
    text: list[int], stride: int, limit: int
) -> None:
    lookup = PromptLookup()
    for length in range(0, len(text) + 1, stride):
        token_ids = text[:length]
        got = lookup.propose(token_ids, limit)
        ends = [e for e in range(2, length) if token_ids[e - 2 : e] == token_ids[-2:]][-8:]
        sizes = [
            max(n for n in range(2, min(5, e) + 1) if token_ids[e - n : e] == token_ids[-n:])
            for e in ends
        ]
        if not ends:
            assert got == ()
            continue
        end = max(e for e, size in zip(ends, sizes, strict=True) if size == max(sizes))
        cycle = token_ids[end:] * limit
        assert got == tuple(cycle[:limit])


@pytest.mark.parametrize(
    ("token_ids", "draft", "accepted"),
    [
        ([5], (), (5,)),
        ([5, 6, 7], (5, 6), (5, 6, 7)),
        ([5, 6, 7], (5, 9), (5, 6)),
        ([5, 6, 7], (9, 6), (5,)),
    ],
)
def test_tokens_hold_up_to_the_first_that_was_not_foreseen(
    token_ids: list[int], draft: tuple[int, ...], accepted: tuple[int, ...]
) -> None:
    assert accept(token_ids, draft) == accepted
