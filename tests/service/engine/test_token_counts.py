from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from service.engine.token_counts import TokenCounts

tokens = st.lists(st.integers(0, 200), max_size=150)


def as_dict(counts: TokenCounts) -> dict[int, float]:
    copy = counts.copy()
    assert len(set(copy.token_ids.tolist())) == len(copy.token_ids)
    return dict(zip(copy.token_ids.tolist(), copy.counts.tolist(), strict=True))


@given(tokens, tokens, tokens)
def test_incremental_counts_equal_a_full_count(
    prompt: list[int], answer: list[int], taken_back: list[int]
) -> None:
    counts = TokenCounts(prompt)
    for token_id in answer + taken_back:
        counts.add(token_id)
    for token_id in reversed(taken_back):
        counts.remove(token_id)
    assert as_dict(counts) == dict.fromkeys(prompt, 0) | Counter(answer)
    for token_id in answer:  # counting continues
        counts.add(token_id)
    assert as_dict(counts) == dict.fromkeys(prompt, 0) | Counter(answer * 2)


def test_copy_does_not_change_later() -> None:
    counts = TokenCounts()
    counts.add(5)
    copy = counts.copy()
    counts.add(5)
    counts.add(6)
    assert (copy.token_ids.tolist(), copy.counts.tolist()) == ([5], [1.0])
