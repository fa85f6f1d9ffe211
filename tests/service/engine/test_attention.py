import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.attention import GatheredAttention, PagedAttention
from service.engine.batch import Batch, ScheduledSequence
from service.engine.kv_store import KVShape, KVStore
from service.engine.layout import Layout
from service.engine.sequence import Sequence
from service.engine.transfer import to_device
from service.engine.varlen_attention import VarlenAttention, VarlenKVStore
from tests.support import varlen_operator
from tests.support.device import TORCH_DEVICE

NUM_KV_HEADS, GROUP, DIM = 2, 3, 8
NUM_HEADS = NUM_KV_HEADS * GROUP

varlen_operator.install(TORCH_DEVICE.type.upper())


class Float32Store(VarlenKVStore):
    """A cache of a type that the kernel does not support, and the operator of tests does."""

    dtypes = frozenset({torch.float32})


def gathered(num_blocks: int, block_size: int) -> PagedAttention:
    shape = KVShape(NUM_KV_HEADS, DIM, DIM, torch.float32)
    return GatheredAttention(KVStore([shape], num_blocks, block_size, TORCH_DEVICE))


def varlen(num_blocks: int, block_size: int) -> PagedAttention:
    shape = KVShape(NUM_KV_HEADS, DIM, DIM, torch.float32)
    return VarlenAttention(Float32Store([shape], num_blocks, block_size, TORCH_DEVICE))


def naive(
    query: Tensor, keys: Tensor, values: Tensor, window: int | None, softcap: float | None
) -> Tensor:
    """Return the attention of a query [H, dim] to keys and values [KVH, L, dim], in float64."""
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    heads = []
    for head in range(NUM_HEADS):
        scores = keys[head // GROUP].double() @ query[head].double() / math.sqrt(DIM)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        heads.append(torch.softmax(scores, -1) @ values[head // GROUP].double())
    return torch.stack(heads).float()


def attend(
    attention: PagedAttention,
    sequences: list[Sequence],
    tokens: list[tuple[Tensor, Tensor, Tensor]],
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute a step.

    Args:
        tokens: Queries, keys and values [heads, n, dim] of the next n tokens of each sequence.
    """
    layout = Layout.of(
        Batch(
            tuple(
                ScheduledSequence(s, query.shape[1], is_sampled=True)
                for s, (query, *_) in zip(sequences, tokens, strict=True)
            )
        )
    )
    attention.begin_step(to_device(attention.plan(layout), TORCH_DEVICE))
    query, key, value = (
        torch.cat(parts, 1).to(TORCH_DEVICE) for parts in zip(*tokens, strict=True)
    )
    for s, (rows, *_) in zip(sequences, tokens, strict=True):
        s.num_computed_tokens += rows.shape[1]
    return attention.attend(0, query, key, value, DIM**-0.5, window, softcap).cpu()


@pytest.mark.parametrize(
    ("make", "block_size", "softcaps"),
    [
        pytest.param(gathered, 4, [None, 1.5], id="gathered"),
        pytest.param(varlen, 256, [None], id="varlen"),
    ],
)
@given(
    contexts=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 12)), min_size=1, max_size=5),
    long_context=st.sampled_from([None, 300, 700]),
    window=st.integers(1, 15) | st.none(),
    data=st.data(),
    seed=st.integers(0, 1000),
)
def test_every_token_attends_to_its_own_context(
    make: Callable[[int, int], PagedAttention],
    block_size: int,
    softcaps: list[float | None],
    contexts: list[tuple[int, int]],
    long_context: int | None,
    window: int | None,
    data: st.DataObject,
    seed: int,
) -> None:
    """A step has sequences with these numbers of cached and new tokens; one may be long."""
    softcap = data.draw(st.sampled_from(softcaps))
    torch.manual_seed(seed)
    if long_context is not None:
        contexts = [*contexts, (long_context, 1)]
    contexts = sorted(contexts, key=lambda c: c[1] > 1)
    free = torch.randperm(300).tolist()
    attention = make(300, block_size)
    sequences, cached, new, expected = [], [], [], []
    for index, (num_cached, num_new) in enumerate(contexts):
        total = num_cached + num_new
        sequence = Sequence(index, Request((0,) * total, SamplingParams()), total + 1)
        sequence.block_ids = [free.pop() for _ in range(-(-total // block_size))]
        query = torch.randn(NUM_HEADS, total, DIM)
        key = torch.randn(NUM_KV_HEADS, total, DIM)
        value = torch.randn(NUM_KV_HEADS, total, DIM)
        sequences.append(sequence)
        cached.append((query[:, :num_cached], key[:, :num_cached], value[:, :num_cached]))
        new.append((query[:, num_cached:], key[:, num_cached:], value[:, num_cached:]))
        expected += [
            naive(query[:, end - 1], key[:, :end], value[:, :end], window, softcap)
            for end in range(num_cached + 1, total + 1)
        ]
    for sequence, tokens in zip(sequences, cached, strict=True):
        if tokens[0].shape[1]:
            attend(attention, [sequence], [tokens], window, softcap)
    got = attend(attention, sequences, new, window, softcap)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-4)
