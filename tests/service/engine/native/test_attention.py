"""Each result of attention is compared with a dense reference in float64. Its bits are compared
with those of the same tokens computed in another way."""

import ctypes
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.engine.kv_store import KVShape
from service.engine.native.attention import (
    AttentionPlan,
    NativeAttention,
    NativeKVStore,
    RotaryRows,
)
from tests.support.native_kernels import loaded

EXACT, ROUNDED, QUANTIZED = torch.float32, torch.bfloat16, torch.int8
DTYPES = [EXACT, ROUNDED, QUANTIZED]
# The largest error, as a multiple of the largest result.
TOLERANCES = {EXACT: 3e-6, ROUNDED: 1.5e-2, QUANTIZED: 1e-3}


@dataclass(frozen=True)
class Shape:
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 64
    window: int | None = None
    softcap: float | None = None
    rotary_dim: int = 0
    has_norms: bool = False

    @property
    def width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.head_dim)

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each [heads, T, head_dim]."""
        heads = qkv.view(len(qkv), -1, self.head_dim).transpose(0, 1)
        first_value = self.num_heads + self.num_kv_heads
        return heads[: self.num_heads], heads[self.num_heads : first_value], heads[first_value:]


@pytest.fixture(scope="module")
def library(kernels: ctypes.CDLL | None) -> ctypes.CDLL:
    return loaded(kernels)


class Layer:
    """A layer of attention with its own cache and the tables of its rotary embedding."""

    def __init__(
        self,
        library: ctypes.CDLL,
        shape: Shape,
        dtype: torch.dtype = EXACT,
        block_size: int = 16,
        num_blocks: int = 80,
        fill: float = 0.0,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shape = shape
        self.store = NativeKVStore(
            2, shape.num_kv_heads, shape.head_dim, num_blocks, block_size, dtype
        )
        if dtype is QUANTIZED:
            self.store.scales(1).fill_(fill)
        else:
            self.store.keys(1).fill_(fill)
            self.store.values(1).fill_(fill)
        norms = 1 + 0.3 * torch.randn(2, shape.head_dim, generator=generator)
        self.norms = norms if shape.has_norms else None
        self.attention = NativeAttention(
            library,
            self.store,
            1,
            num_heads=shape.num_heads,
            scale=shape.scale,
            window=shape.window,
            softcap=shape.softcap,
            q_norm=None if self.norms is None else self.norms[0],
            k_norm=None if self.norms is None else self.norms[1],
            norm_eps=1e-6,
        )

    def angles(self, positions: Tensor) -> Tensor:
        half = self.shape.rotary_dim // 2
        frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / max(half, 1))
        return positions[:, None] * frequencies

    def attend(self, rows: "list[Rows]") -> list[Tensor]:
        """Compute all rows in one step. Return the results of each item of `rows`."""
        plan = AttentionPlan(
            [r.end - r.start for r in rows],
            [r.end for r in rows],
            [r.table for r in rows],
            self.store.block_size,
        )
        rotary = None
        if self.shape.rotary_dim:
            angles = self.angles(torch.cat([torch.arange(r.start, r.end) for r in rows]))
            rotary = RotaryRows(angles.cos(), angles.sin())
        qkv = torch.cat([r.qkv[r.start : r.end] for r in rows])
        return list(torch.split(self.attention(plan, qkv, rotary), [r.end - r.start for r in rows]))

    def reference(self, qkv: Tensor) -> Tensor:
        """Return dense attention of a whole sequence in float64, over keys and values as cached."""
        shape = self.shape
        query, key, value = shape.heads(qkv.double())
        if self.norms is not None:
            query, key = (
                x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.double()
                for x, norm in zip((query, key), self.norms, strict=True)
            )
        positions = torch.arange(len(qkv))
        if shape.rotary_dim:
            angles = self.angles(positions)
            query, key = (_rotated(x, angles) for x in (query, key))
        rotation = hadamard(shape.head_dim).double()
        if self.store.dtype is QUANTIZED:
            key = key @ rotation
        key, value = (as_cached(x, self.store.dtype).double() for x in (key, value))
        if self.store.dtype is QUANTIZED:
            key = key @ rotation.T / rotation.square().sum(0)
        group = shape.num_heads // shape.num_kv_heads
        key, value = (x.repeat_interleave(group, 0) for x in (key, value))
        scores = query @ key.transpose(1, 2) * shape.scale
        if shape.softcap is not None:
            scores = (scores / shape.softcap).tanh() * shape.softcap
        visible = positions <= positions[:, None]
        if shape.window is not None:
            visible &= positions > positions[:, None] - shape.window
        weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
        return (weights @ value).transpose(0, 1).flatten(1)

    def cached(self, rows: "Rows") -> list[Tensor]:
        """Return the bits of the cached keys and values of the sequence up to the rows' end."""
        size = self.store.block_size
        slots = [rows.table[p // size] * size + p % size for p in range(rows.end)]
        bits = torch.int16 if self.store.dtype == ROUNDED else torch.int32
        tokens = [torch.stack(self.store.token(1, slot)).view(bits) for slot in slots]
        return [torch.stack(tokens)]


@dataclass(frozen=True)
class Rows:
    """Tokens [start, end) of a sequence."""

    qkv: Tensor
    start: int
    end: int
    table: list[int]


def hadamard(head_dim: int) -> Tensor:
    """Return the matrix that rotates the keys of an int8 cache, [head_dim, head_dim]."""
    width = 64 if head_dim % 64 == 0 else 16
    block = torch.ones(1, 1)
    while len(block) < width:
        block = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), block)
    return torch.kron(torch.eye(head_dim // width), block)


def as_cached(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return keys or values [..., head_dim] as they are in a cache of a type, with their scales."""
    if dtype is not QUANTIZED:
        return x.to(dtype)
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    half = angles.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat(
        (a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest), -1
    )


def sequence(shape: Shape, length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, shape.width, generator=torch.Generator().manual_seed(seed))


def tables(
    lengths: list[int], block_size: int, num_blocks: int, rng: random.Random
) -> Iterator[list[int]]:
    """Yield block tables for sequences of these lengths, with blocks in any order."""
    free = rng.sample(range(num_blocks), num_blocks)
    for length in lengths:
        yield [free.pop() for _ in range(-(-length // block_size))]


def assert_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Check equality up to rounding of float32 sums, or of queries and weights of fewer bits."""
    error = (actual.double() - expected).abs().max().item()
    assert error < TOLERANCES[dtype] * max(1.0, expected.abs().max().item())


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 33, 255, 257, 1000])
def test_prompt_and_next_token_match_the_reference(
    library: ctypes.CDLL, length: int, dtype: torch.dtype
) -> None:
    shape = Shape()
    layer = Layer(library, shape, dtype)
    qkv = sequence(shape, length + 1)
    (table,) = tables([length + 1], 16, 80, random.Random(0))
    expected = layer.reference(qkv)
    (prompt,) = layer.attend([Rows(qkv, 0, length, table)])
    (token,) = layer.attend([Rows(qkv, length, length + 1, table)])
    assert_close(prompt, expected[:-1], dtype)
    assert_close(token, expected[-1:], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape",
    [
        Shape(num_heads=4, num_kv_heads=4),
        Shape(num_heads=7, num_kv_heads=1),
        Shape(num_heads=40, num_kv_heads=1, head_dim=16),
        Shape(head_dim=16),
        Shape(head_dim=80),
        Shape(head_dim=96),
        Shape(head_dim=112),
        Shape(head_dim=128),
        Shape(head_dim=256),
        Shape(window=1),
        Shape(window=5),
        Shape(window=16),
        Shape(window=300),
        Shape(window=1000),
        Shape(softcap=2.0),
        Shape(softcap=50.0, window=40),
        Shape(has_norms=True),
        Shape(rotary_dim=64),
        Shape(rotary_dim=32),
        Shape(head_dim=96, rotary_dim=24),
        Shape(head_dim=256, rotary_dim=256, has_norms=True, window=100),
    ],
    ids=str,
)
def test_every_kind_of_attention(library: ctypes.CDLL, shape: Shape, dtype: torch.dtype) -> None:
    layer = Layer(library, shape, dtype, fill=math.nan)
    rng = random.Random(1)
    lengths = [330, 19, 48]
    qkvs = [sequence(shape, length, seed) for seed, length in enumerate(lengths)]
    places = list(tables(lengths, 16, 80, rng))
    split = [(0, 300), (0, 18), (0, 40)]
    rest = [(300, 330), (18, 19), (40, 48)]
    results = [
        layer.attend([Rows(q, *s, t) for q, s, t in zip(qkvs, step, places, strict=True)])
        for step in (split, rest)
    ]
    for index, qkv in enumerate(qkvs):
        assert_close(torch.cat([r[index] for r in results]), layer.reference(qkv), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 32, 48])
def test_cache_contains_the_written_keys_and_values(
    library: ctypes.CDLL, block_size: int, dtype: torch.dtype
) -> None:
    shape = Shape(head_dim=80)
    layer = Layer(library, shape, dtype, block_size)
    qkv = sequence(shape, 100)
    (table,) = tables([100], block_size, 80, random.Random(2))
    layer.attend([Rows(qkv, 0, 70, table)])
    layer.attend([Rows(qkv, 70, 100, table)])
    _, keys, values = shape.heads(qkv)
    for position in range(100):
        slot = table[position // block_size] * block_size + position % block_size
        key, value = layer.store.token(1, slot)
        if dtype is QUANTIZED:
            rotated = keys[:, position] @ hadamard(shape.head_dim)
            assert torch.allclose(key, as_cached(rotated, dtype), atol=0.1)
            assert torch.allclose(value, as_cached(values[:, position], dtype), atol=0.02)
            continue
        assert torch.equal(key, keys[:, position].to(dtype))
        assert torch.equal(value, values[:, position].to(dtype))
    assert not layer.store.keys(0).any()
    assert not layer.store.values(0).any()


@st.composite
def splits(draw: st.DrawFn, length: int) -> list[tuple[int, int]]:
    """Draw the steps of a sequence: chunks, groups to verify and single tokens, in any order."""
    steps: list[tuple[int, int]] = []
    start = 0
    while start < length:
        size = draw(st.one_of(st.just(1), st.integers(2, 6), st.integers(7, 400)))
        end = min(length, start + size) if len(steps) < 12 else length
        steps.append((start, end))
        start = end
    return steps


SHAPES = [
    Shape(rotary_dim=64),
    Shape(num_heads=3, num_kv_heads=3, head_dim=80, window=70),
    Shape(num_heads=8, num_kv_heads=1, head_dim=32, has_norms=True, softcap=3.0),
    Shape(num_heads=2, num_kv_heads=1, head_dim=128, window=260),
    Shape(num_heads=4, num_kv_heads=2, head_dim=16, window=33),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@given(data=st.data())
def test_result_has_the_same_bits_in_any_batch(
    library: ctypes.CDLL, shape: Shape, dtype: torch.dtype, data: st.DataObject
) -> None:
    block_size = data.draw(st.sampled_from([16, 32, 48]))
    length = data.draw(st.integers(1, 600))
    steps = data.draw(splits(length))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    qkv = sequence(shape, length, seed=7)

    alone = Layer(library, shape, dtype, block_size)
    (table,) = tables([length], block_size, 80, rng)
    whole = Rows(qkv, 0, length, table)
    (expected,) = alone.attend([whole])

    among = Layer(library, shape, dtype, block_size, num_blocks=300, fill=math.nan)
    neighbours = [rng.randint(1, 300) for _ in range(rng.randint(0, 4))]
    own, *others = tables([length, *neighbours], block_size, 300, rng)
    parts = []
    for start, end in steps:
        beside = [
            Rows(sequence(shape, n, seed=n), 0, n, t)
            for n, t in zip(neighbours, others, strict=True)
        ]
        rng.shuffle(beside)
        place = rng.randint(0, len(beside))
        beside.insert(place, Rows(qkv, start, end, own))
        parts.append(among.attend(beside)[place])
    assert torch.equal(torch.cat(parts), expected)
    assert same(among.cached(Rows(qkv, 0, length, own)), alone.cached(whole))


@pytest.mark.parametrize("dtype", DTYPES)
def test_number_of_threads_does_not_change_results(
    library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    shape = Shape()
    qkv = sequence(shape, 900)
    (table,) = tables([900], 32, 80, random.Random(3))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            layer = Layer(library, shape, dtype, 32)
            prompt = layer.attend([Rows(qkv, 0, 899, table)])
            results.append(prompt + layer.attend([Rows(qkv, 899, 900, table)]))
    finally:
        torch.set_num_threads(threads)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_finite_token_does_not_change_earlier_tokens(
    library: ctypes.CDLL, dtype: torch.dtype
) -> None:
    shape = Shape(num_heads=3, num_kv_heads=1)
    clean, spoiled = sequence(shape, 45), sequence(shape, 45)
    spoiled[40:] = math.nan
    spoiled[37] = math.inf
    (table,) = tables([45], 32, 80, random.Random(4))
    (expected,) = Layer(library, shape, dtype, 32).attend([Rows(clean, 0, 45, table)])
    (actual,) = Layer(library, shape, dtype, 32).attend([Rows(spoiled, 0, 45, table)])
    assert torch.equal(actual[:37], expected[:37])
    assert not actual[37:].isfinite().any()


def test_zeros_and_tiny_numbers_are_quantized_to_zeros(library: ctypes.CDLL) -> None:
    shape = Shape(num_heads=3, num_kv_heads=1)
    qkv = sequence(shape, 40)
    qkv[:, 3 * shape.head_dim :] = 0.0
    qkv[20:, 4 * shape.head_dim :] = 1e-38
    layer = Layer(library, shape, QUANTIZED)
    (attended,) = layer.attend([Rows(qkv, 0, 40, [0, 1, 2])])
    assert not attended.any()


def test_large_dimensions_of_keys_do_not_spoil_the_others(library: ctypes.CDLL) -> None:
    shape = Shape()
    qkv = sequence(shape, 200)
    keys = qkv.view(200, -1, shape.head_dim)[:, shape.num_heads : -shape.num_kv_heads]
    keys[..., 5] += 100.0  # an attention that ignores it: the queries have nothing there
    qkv.view(200, -1, shape.head_dim)[:, : shape.num_heads, 5] = 0.0
    exact, quantized = (Layer(library, shape, dtype, num_blocks=13) for dtype in (EXACT, QUANTIZED))
    (expected,), (actual,) = (
        layer.attend([Rows(qkv, 0, 200, list(range(13)))]) for layer in (exact, quantized)
    )
    assert (actual - expected).norm() < 0.1 * expected.norm()


def test_blocks_of_int8_have_values_and_scales() -> None:
    store = NativeKVStore(2, 3, 64, num_blocks=5, block_size=16, dtype=QUANTIZED)
    tensors = store.block_tensors()
    assert [len(tensor) for tensor in tensors] == [5] * 4
    shape = KVShape(3, 64, 64, QUANTIZED)
    assert sum(tensor[0].nbytes for tensor in tensors) == 2 * 16 * shape.bytes_per_token


@pytest.mark.parametrize(
    ("head_dim", "block_size", "dtype"),
    [(64, 8, EXACT), (64, 40, EXACT), (72, 16, EXACT), (272, 16, EXACT), (64, 16, torch.float16)],
)
def test_store_rejects_unsupported_sizes(
    head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    with pytest.raises(ValueError, match="is n"):
        NativeKVStore(1, 1, head_dim, 4, block_size, dtype)


def test_inconsistent_heads_rows_and_tensors_are_rejected(library: ctypes.CDLL) -> None:
    shape = Shape()
    layer = Layer(library, shape)
    with pytest.raises(ValueError, match="5 heads over 2"):
        NativeAttention(library, layer.store, 0, num_heads=5, scale=1.0)
    for rows, context_len in ((0, 1), (2, 1), (1, 17)):
        with pytest.raises(ValueError, match="blocks of 16"):
            AttentionPlan([rows], [context_len], [[0]], 16)
    plan = AttentionPlan([2], [2], [[0]], 16)
    for qkv in (
        torch.zeros(1, shape.width),
        torch.zeros(2, shape.width, dtype=torch.bfloat16),
        torch.zeros(shape.width, 2).T,
    ):
        with pytest.raises(ValueError, match="contiguous float32"):
            layer.attention(plan, qkv, None)
