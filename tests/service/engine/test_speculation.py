import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.speculation import PromptLookup, accept


def propose(lookup: PromptLookup, token_ids: list[int], length: int) -> tuple[int, ...]:
    """Return a draft, or no tokens if there is none."""
    return lookup.draft(token_ids, length) if lookup.acceptance(token_ids) is not None else ()


def test_tokens_after_an_earlier_occurrence_are_proposed() -> None:
    assert propose(PromptLookup(), [1, 2, 3, 4, 5, 9, 2, 3], 2) == (4, 5)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 1, 4, 3]])
def test_tokens_without_earlier_occurrence_have_no_draft(token_ids: list[int]) -> None:
    assert PromptLookup().acceptance(token_ids) is None


def test_latest_of_equal_matches_is_chosen() -> None:
    assert propose(PromptLookup(), [1, 2, 3, 0, 1, 2, 4, 0, 5, 1, 2], 1) == (4,)


def test_longest_match_is_chosen_before_the_latest() -> None:
    assert propose(PromptLookup(), [0, 1, 2, 3, 9, 1, 2, 4, 0, 1, 2], 1) == (3,)


def test_draft_that_reaches_the_end_repeats() -> None:
    assert propose(PromptLookup(), [0, 7, 8, 9, 7, 8], 7) == (9, 7, 8, 9, 7, 8, 9)
    assert propose(PromptLookup(), [7, 7, 7], 3) == (7, 7, 7)


def test_tokens_may_grow_by_any_number() -> None:
    lookup = PromptLookup()
    text = [1, 2, 3, 4, 5, 6, 1, 2]
    assert propose(lookup, text[:1], 1) == ()
    assert propose(lookup, text[:2], 1) == ()
    assert propose(lookup, text[:6], 1) == ()
    assert propose(lookup, text, 1) == (3,)
    assert propose(lookup, [*text, 3], 1) == (4,)
    assert propose(lookup, [*text, 3, 4, 5], 2) == (6, 1)


def test_match_is_followed_until_a_token_differs() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4, 5, 6, 0, 1, 2]
    before = lookup.acceptance(text)
    after_hit = lookup.acceptance([*text, 3])
    assert lookup.acceptance([*text, 3, 9]) is None
    after_miss = lookup.acceptance([*text, 3, 9, 1, 2])
    assert before is not None
    assert after_hit is not None
    assert after_miss is not None
    assert 0 < before.first < after_miss.first < after_hit.first < 1
    assert 0 < after_miss.following < after_hit.following < 1


def test_acceptance_is_measured_without_drafts() -> None:
    lookup, text = PromptLookup(), [1, 2, 3, 4] * 2
    for i in range(40):
        text.append(1 + i % 4)
        lookup.acceptance(text)
    assert min(lookup.acceptance(text) or (0.0,)) > 0.95


def test_wrong_matches_in_a_row_make_searches_rare_and_a_right_one_ends_that() -> None:
    """Each pair was followed by 0, and is now followed by another token."""
    lookup = PromptLookup()
    text = [token for i in range(1, 400) for token in (i, i, 0)]
    gaps: list[int] = []
    gap = 0
    for i in range(1, 400):
        text += [-i, i, i]
        if lookup.acceptance(text) is None:
            gap += 1
            continue
        gaps.append(gap)
        gap = 0
        if len(gaps) == 8:
            break
    assert gaps == [0, 0, 1, 3, 7, 15, 15, 15]
    text.append(0)
    assert lookup.acceptance(text) is not None
    text += [-500, 399, 399]
    assert lookup.acceptance(text) is not None, "a search after a match that was right once"


def test_long_prompt_is_indexed_over_several_calls() -> None:
    text = [*range(10_000), 3, 4]
    lookup = PromptLookup()
    found = [lookup.acceptance([*text, *range(5, 5 + i)]) is not None for i in range(4)]
    assert found == [False, False, True, True]


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 9))
def test_drafts_equal_those_of_the_definition(text: list[int], length: int) -> None:
    got = propose(PromptLookup(), text, length)
    ends = [e for e in range(2, len(text)) if text[e - 2 : e] == text[-2:]][-8:]
    sizes = [max(n for n in range(2, min(5, e) + 1) if text[e - n : e] == text[-n:]) for e in ends]
    if not ends:
        assert got == ()
        return
    end = max(e for e, size in zip(ends, sizes, strict=True) if size == max(sizes))
    assert got == tuple((text[end:] * length)[:length])


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 6))
def test_draft_of_a_growing_text_continues_an_earlier_occurrence(
    text: list[int], stride: int
) -> None:
    lookup = PromptLookup()
    for end in range(0, len(text) + 1, stride):
        token_ids = text[:end]
        draft = propose(lookup, token_ids, 1)
        if draft:
            pair = (*token_ids[-2:], *draft)
            assert pair in list(zip(token_ids, token_ids[1:], token_ids[2:], strict=False))


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
