import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service.engine.attention import AttentionBatch, PagedAttention, PrefillChunk, ShapeProbe
from service.engine.kv_store import KVShape, KVStore
from service.errors import ModelLoadError

NUM_KV_HEADS, GROUP, KEY_DIM, VALUE_DIM, BLOCK_SIZE = 2, 3, 6, 4, 4
NUM_HEADS = NUM_KV_HEADS * GROUP


class Layer(nn.Module):
    def __init__(self, layer_idx: int | None = 0, *, is_causal: bool = True) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.is_causal = is_causal


def naive(
    query: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    """One query [H, dim] over what it may see: keys and values [KVH, L, dim], in float64."""
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    heads = []
    for head in range(NUM_HEADS):
        scores = keys[head // GROUP].double() @ query[head].double() / math.sqrt(KEY_DIM)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        heads.append(torch.softmax(scores, -1) @ values[head // GROUP].double())
    return torch.stack(heads).float()


@settings(max_examples=60, deadline=None)
@given(
    contexts=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=5),
    window=st.integers(1, 15) | st.none(),
    softcap=st.sampled_from([None, 1.5]),
    seed=st.integers(0, 1000),
)
def test_every_token_attends_to_its_own_context(
    contexts: list[tuple[int, int]], window: int | None, softcap: float | None, seed: int
) -> None:
    """Sequences of so many tokens in the cache and so many new ones, in one packed step."""
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
    got, weights = attention(
        Layer(),
        torch.cat(queries, 1)[None],
        torch.cat(new_keys, 1)[None],
        torch.cat(new_values, 1)[None],
        None,
        sliding_window=window,
        softcap=softcap,
    )
    assert weights is None
    torch.testing.assert_close(got[0], torch.stack(expected), atol=1e-5, rtol=1e-4)


def probe(module: nn.Module, **kwargs: object) -> ShapeProbe:
    probe = ShapeProbe()
    key, value = torch.zeros(1, 2, 1, 6), torch.zeros(1, 2, 1, 4)
    output, _ = probe(module, torch.zeros(1, 8, 1, 6), key, value, None, **kwargs)
    assert output.shape == (1, 1, 8, 4)
    return probe


def test_a_probe_learns_shapes_and_windows() -> None:
    probed = probe(Layer(3), sliding_window=9, dropout=0.0, s_aux=None)
    assert probed.shapes == {3: KVShape(2, 6, 4, torch.float32)}
    assert probed.windows == {3: 9}


@pytest.mark.parametrize(
    ("module", "kwargs", "reason"),
    [
        (Layer(), {"s_aux": torch.zeros(8)}, "s_aux"),
        (Layer(), {"position_bias": torch.zeros(1)}, "position_bias"),
        (Layer(), {"what_comes_next_year": 1}, "what_comes_next_year"),
        (Layer(is_causal=False), {}, "tokens to come"),
        (Layer(), {"is_causal": False}, "tokens to come"),
        (Layer(None), {}, "which layer"),
    ],
)
def test_a_probe_refuses_what_it_does_not_know(
    module: nn.Module, kwargs: dict[str, object], reason: str
) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        probe(module, **kwargs)
