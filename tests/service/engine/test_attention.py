import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.attention import AttentionBatch, PagedAttention, PrefillChunk
from service.engine.kv_store import KVShape, KVStore

NUM_KV_HEADS, GROUP, KEY_DIM, VALUE_DIM, BLOCK_SIZE = 2, 3, 6, 4, 4
NUM_HEADS = NUM_KV_HEADS * GROUP


def naive(
    query: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    """Return the attention of a query [H, dim] to keys and values [KVH, L, dim], in float64."""
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    heads = []
    for head in range(NUM_HEADS):
        scores = keys[head // GROUP].double() @ query[head].double() / math.sqrt(KEY_DIM)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        heads.append(torch.softmax(scores, -1) @ values[head // GROUP].double())
    return torch.stack(heads).float()


@given(
    contexts=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=5),
    window=st.integers(1, 15) | st.none(),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 1000),
)
def test_every_token_attends_to_its_own_context(
    contexts: list[tuple[int, int]], window: int | None, softcap: float | None, seed: int
) -> None:
    """A packed step has sequences with these numbers of cached and new tokens."""
    torch.manual_seed(seed)
    contexts = sorted(contexts, key=lambda c: c[1] > 1)
    num_blocks = 60
    store = KVStore(
        [KVShape(NUM_KV_HEADS, KEY_DIM, VALUE_DIM, torch.float32)],
        num_blocks,
        BLOCK_SIZE,
        torch.device("cpu"),
    )
    free = torch.randperm(num_blocks).tolist()
    queries, new_keys, new_values, slots, expected = [], [], [], [], []
    tables, lens, chunks = [], [], []
    row = 0
    for num_cached, num_new in contexts:
        total = num_cached + num_new
        blocks = [free.pop() for _ in range(-(-total // BLOCK_SIZE))]
        places = torch.tensor(
            [blocks[i // BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE for i in range(total)]
        )
        query = torch.randn(NUM_HEADS, num_new, KEY_DIM)
        keys = torch.randn(NUM_KV_HEADS, total, KEY_DIM)
        values = torch.randn(NUM_KV_HEADS, total, VALUE_DIM)
        store.write(0, places[:num_cached], keys[:, :num_cached], values[:, :num_cached])
        for i in range(num_new):
            end = num_cached + i + 1
            expected.append(naive(query[:, i], keys[:, :end], values[:, :end], window, softcap))
        queries.append(query)
        new_keys.append(keys[:, num_cached:])
        new_values.append(values[:, num_cached:])
        slots.append(places[num_cached:])
        if num_new == 1:
            tables.append(blocks)
            lens.append(total)
        else:
            chunks.append(PrefillChunk(row, row + num_new, total, torch.tensor([blocks])))
        row += num_new
    longest = max(map(len, tables), default=0)
    attention = PagedAttention(store)
    attention.batch = AttentionBatch(
        torch.cat(slots),
        len(lens),
        torch.tensor(lens, dtype=torch.long),
        torch.tensor([t + t[:1] * (longest - len(t)) for t in tables], dtype=torch.long),
        tuple(chunks),
    )
    got = attention.attend(
        0,
        torch.cat(queries, 1),
        torch.cat(new_keys, 1),
        torch.cat(new_values, 1),
        KEY_DIM**-0.5,
        window,
        softcap,
    )
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-4)
