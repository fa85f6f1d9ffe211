from hypothesis import given
from hypothesis import strategies as st

from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence
from tests.service.engine.requests import make_request


def sequence(num_tokens: int) -> Sequence:
    return Sequence(0, make_request(num_tokens), max_model_len=1000)


def test_a_new_pool_is_all_free() -> None:
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


def test_a_sequence_that_has_room_gets_nothing() -> None:
    pool = BlockPool(num_blocks=1, block_size=4)
    grown = sequence(3)
    assert pool.allocate(grown)
    grown.append(7)
    assert pool.allocate(grown)
    assert pool.num_free == 0
    grown.append(7)
    assert not pool.allocate(grown)


def test_a_refusal_changes_nothing() -> None:
    pool = BlockPool(num_blocks=2, block_size=4)
    refused = sequence(9)
    assert not pool.allocate(refused)
    assert (refused.block_ids, pool.num_free) == ([], 2)


def test_spared_blocks_stay_free() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    assert not pool.allocate(sequence(5), num_spared=2)
    assert pool.allocate(sequence(5), num_spared=1)


def test_free_takes_everything_back_and_forgets_what_was_computed() -> None:
    pool = BlockPool(num_blocks=3, block_size=4)
    freed = sequence(9)
    assert pool.allocate(freed)
    freed.num_computed_tokens = 9
    pool.free(freed)
    assert (freed.block_ids, freed.num_computed_tokens, pool.num_free) == ([], 0, 3)


def test_the_blocks_freed_last_are_used_first() -> None:
    pool = BlockPool(num_blocks=100, block_size=4)
    first = sequence(8)
    assert pool.allocate(first)
    block_ids = list(first.block_ids)
    pool.free(first)
    assert pool.allocate(first)
    assert first.block_ids == block_ids


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30))))
def test_every_block_is_free_or_one_sequences(program: list[tuple[int, int]]) -> None:
    """Each step frees what stands at a place, or gives a new sequence of some length that place."""
    pool = BlockPool(num_blocks=12, block_size=4)
    held: dict[int, Sequence] = {}
    for place, num_tokens in program:
        if place in held:
            pool.free(held.pop(place))
        else:
            new = sequence(num_tokens)
            if pool.allocate(new):
                held[place] = new
        block_ids = [block for s in held.values() for block in s.block_ids]
        assert len(set(block_ids)) == len(block_ids)
        assert set(block_ids) <= set(range(12))
        assert pool.num_free == 12 - len(block_ids)
