import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence
from tests.service.engine.requests import make_request


def sequence(prompt: int | tuple[int, ...], cache_salt: str = "") -> Sequence:
    return Sequence(0, make_request(prompt, cache_salt=cache_salt), max_model_len=1000)


def computed(pool: BlockPool, prompt: int | tuple[int, ...], cache_salt: str = "") -> Sequence:
    """Return a sequence with allocated blocks whose tokens are all computed."""
    new = sequence(prompt, cache_salt)
    assert pool.allocate(new)
    pool.advance(new, new.num_uncomputed_tokens)
    return new


def test_new_pool_has_only_free_blocks() -> None:
    pool = BlockPool(num_blocks=5, block_size=4)
    assert (pool.num_free, pool.num_tokens) == (5, 20)


def test_blocks_are_given_for_all_tokens_and_no_more() -> None:
    pool = BlockPool(num_blocks=5, block_size=4)
    short, full, longer = sequence(1), sequence(4), sequence(5)
    assert pool.allocate(short)
    assert pool.allocate(full)
    assert pool.allocate(longer)
    assert [len(s.block_ids) for s in (short, full, longer)] == [1, 1, 2]
    assert pool.num_free == 1


def test_sequence_with_room_in_its_blocks_gets_no_block() -> None:
    pool = BlockPool(num_blocks=1, block_size=4)
    grown = sequence(3)
    assert pool.allocate(grown)
    grown.append(7)
    assert pool.allocate(grown)
    assert pool.num_free == 0
    grown.append(7)
    assert not pool.allocate(grown)


def test_failed_allocation_changes_nothing() -> None:
    pool = BlockPool(num_blocks=2, block_size=4)
    refused = sequence(9)
    assert not pool.allocate(refused)
    assert (refused.block_ids, pool.num_free) == ([], 2)


def test_spared_blocks_stay_free() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    assert not pool.allocate(sequence(5), num_spared=2)
    assert pool.allocate(sequence(5), num_spared=1)


def test_draft_gets_blocks_that_its_tokens_fill_later() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    drafting = sequence(4)
    assert pool.allocate(drafting, num_draft_tokens=8)
    assert pool.num_free == 0
    assert pool.allocate(drafting, num_draft_tokens=3, num_spared=1), "it has them already"
    drafting.extend([7] * 3)
    assert pool.allocate(drafting)
    assert len(drafting.block_ids) == 3
    pool.free(drafting)
    assert pool.num_free == 3


def test_free_takes_everything_back_and_forgets_what_was_computed() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    freed = computed(pool, 9)
    pool.free(freed)
    assert (freed.block_ids, freed.num_computed_tokens, pool.num_free) == ([], 0, 3)


def test_blocks_freed_last_are_reused_first() -> None:
    pool = BlockPool(num_blocks=100, block_size=4)
    first = sequence(8)
    assert pool.allocate(first)
    block_ids = list(first.block_ids)
    pool.free(first)
    assert pool.allocate(first)
    assert first.block_ids == block_ids


def test_prefix_is_shared_with_its_holder() -> None:
    pool = BlockPool(num_blocks=5, block_size=4)
    first = computed(pool, 10)
    second = sequence((*range(1, 9), 70, 71))
    assert pool.allocate(second)
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.num_computed_tokens == 8
    assert pool.num_free == 1
    pool.free(first)
    assert pool.num_free == 2
    pool.free(second)
    assert pool.num_free == 5


def test_prefix_is_shared_after_it_was_freed() -> None:
    pool = BlockPool(num_blocks=5, block_size=4)
    first = computed(pool, 10)
    block_ids = list(first.block_ids)
    pool.free(first)
    assert pool.num_free == 5
    second = computed(pool, 9)
    assert second.block_ids[:2] == block_ids[:2]
    assert pool.num_free == 2


def test_last_token_is_never_taken_from_the_cache() -> None:
    pool = BlockPool(num_blocks=9, block_size=4)
    computed(pool, 8)
    again = sequence(8)
    assert pool.allocate(again)
    assert again.num_computed_tokens == 4


def test_blocks_are_not_shared_before_they_are_computed() -> None:
    pool = BlockPool(num_blocks=9, block_size=4)
    first, second, third = sequence(9), sequence(9), sequence(9)
    assert pool.allocate(first)
    assert pool.allocate(second)
    pool.advance(first, 7)
    assert pool.allocate(third)
    assert (second.num_computed_tokens, third.num_computed_tokens) == (0, 4)


def test_prefix_includes_all_tokens_before_the_block() -> None:
    pool = BlockPool(num_blocks=9, block_size=4)
    computed(pool, (1, 2, 3, 4, 5, 6, 7, 8, 9))
    other = sequence((0, 2, 3, 4, 5, 6, 7, 8, 9))
    assert pool.allocate(other)
    assert other.num_computed_tokens == 0


def test_token_ids_with_the_same_digits_are_different_prefixes() -> None:
    pool = BlockPool(num_blocks=9, block_size=2)
    computed(pool, (1, 23, 4))
    other = sequence((12, 3, 4))
    assert pool.allocate(other)
    assert other.num_computed_tokens == 0


@pytest.mark.parametrize(
    ("salts", "num_cached"),
    [(("", ""), 8), (("a", "a"), 8), (("a", ""), 0), (("", "a"), 0), (("a", "b"), 0)],
)
def test_prefixes_with_different_salts_are_not_shared(
    salts: tuple[str, str], num_cached: int
) -> None:
    pool = BlockPool(num_blocks=9, block_size=4)
    pool.free(computed(pool, 9, salts[0]))
    other = sequence(9, salts[1])
    assert pool.allocate(other)
    assert other.num_computed_tokens == num_cached


def test_block_computed_twice_is_cached_once() -> None:
    pool = BlockPool(num_blocks=9, block_size=4)
    first, second = sequence(5), sequence(5)
    assert pool.allocate(first)
    assert pool.allocate(second)
    pool.advance(first, 5)
    pool.advance(second, 5)
    third = sequence(5)
    assert pool.allocate(third)
    assert third.block_ids[0] == first.block_ids[0]
    for held in (first, second, third):
        pool.free(held)
    assert pool.num_free == 9


def test_least_recently_held_prefix_is_evicted_from_its_end() -> None:
    pool = BlockPool(num_blocks=6, block_size=4)
    older, newer = (1,) * 12, (2,) * 12
    pool.free(computed(pool, older))
    pool.free(computed(pool, newer))
    pool.free(computed(pool, 1))  # its block is the last one of the older sequence
    for prompt, num_cached in ((older, 8), (newer, 8)):
        again = sequence((*prompt, 0))
        assert pool.allocate(again, num_spared=2)
        assert again.num_computed_tokens == num_cached
        pool.free(again)


def test_blocks_that_cache_nothing_are_used_first() -> None:
    pool = BlockPool(num_blocks=6, block_size=4)
    pool.free(computed(pool, 8))
    for _ in range(5):
        pool.free(computed(pool, (7, 7)))
    again = sequence(9)
    assert pool.allocate(again)
    assert again.num_computed_tokens == 8


def test_free_blocks_that_are_to_be_shared_are_not_counted_twice() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    pool.free(computed(pool, 8))
    refused = sequence(13)
    assert not pool.allocate(refused)
    assert (refused.block_ids, refused.num_computed_tokens, pool.num_free) == ([], 0, 3)
    assert not pool.allocate(sequence(9), num_spared=1)
    assert pool.allocate(sequence(9))


def test_without_prefix_caching_nothing_is_shared() -> None:
    pool = BlockPool(num_blocks=9, block_size=4, has_prefix_caching=False)
    first, second = computed(pool, 9), computed(pool, 9)
    assert not set(first.block_ids) & set(second.block_ids)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(1, 30), st.booleans())))
def test_every_block_is_free_or_held_and_shared_only_for_what_it_holds(
    program: list[tuple[int, int, int, bool]],
) -> None:
    """Each step frees the sequence at an index, or allocates a new one there."""
    pool = BlockPool(num_blocks=12, block_size=4)
    contents: dict[int, list[int]] = {}
    held: dict[int, Sequence] = {}
    for place, text, num_tokens, is_computed in program:
        if place in held:
            pool.free(held.pop(place))
        elif pool.allocate(new := sequence(tuple((text + 3) * i % 7 for i in range(num_tokens)))):
            held[place] = new
            for i in range(new.num_computed_tokens // 4):
                assert contents[new.block_ids[i]] == new.token_ids[: 4 * i + 4]
            if is_computed:
                for i in range(new.num_computed_tokens // 4, num_tokens // 4):
                    contents[new.block_ids[i]] = new.token_ids[: 4 * i + 4]
                pool.advance(new, new.num_uncomputed_tokens)
        assert all(len(set(s.block_ids)) == len(s.block_ids) for s in held.values())
        block_ids = {block for s in held.values() for block in s.block_ids}
        assert block_ids <= set(range(12))
        assert pool.num_free == 12 - len(block_ids)
