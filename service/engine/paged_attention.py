"""The choice among the implementations of attention over the paged KV cache in torch."""

from collections.abc import Sequence
from functools import cache

import structlog
import torch
from torch import Tensor

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.attention import GatheredAttention, PagedAttention
from service.engine.batch import Batch, ScheduledSequence
from service.engine.kv_store import KVShape, KVStore
from service.engine.layout import Layout
from service.engine.sequence import Sequence as EngineSequence
from service.engine.transfer import to_device
from service.engine.varlen_attention import VarlenAttention, VarlenKVStore

_MIN_CAPABILITY = (8, 0)  # Ampere: the first with FlashAttention

# The sequences of `check_results`, as numbers of cached and of new tokens, and the window. With
# contexts of this length the kernel divides a context among thread blocks.
_CHECKS: list[tuple[list[tuple[int, int]], int | None]] = [
    ([(900, 1), (3, 1), (1700, 1)], None),
    ([(900, 1), (1700, 1)], 100),
    ([(0, 1), (300, 1), (0, 70), (600, 40)], None),
    ([(0, 1), (300, 1), (0, 70), (600, 40)], 50),
]
_MAX_DIFFERENCE = 0.1

log = structlog.get_logger(__name__)


def make_paged_attention(
    shapes: list[KVShape],
    num_heads: int,
    num_blocks: int,
    block_size: int,
    device: torch.device,
    *,
    has_softcap: bool,
) -> PagedAttention:
    """Make the attention and its cache: `VarlenAttention` if it supports the model on the device.

    Args:
        shapes: The cache shape of each layer.
        num_heads: Number of query heads.
        has_softcap: True if a layer has a softcap.
    """
    if device.type == "cuda" and _is_supported(
        tuple(dict.fromkeys(shapes)), num_heads, block_size, device, has_softcap=has_softcap
    ):
        return VarlenAttention(VarlenKVStore(shapes, num_blocks, block_size, device))
    return GatheredAttention(KVStore(shapes, num_blocks, block_size, device))


@cache  # a model may get several caches, the first of them to measure the memory of a step
def _is_supported(
    shapes: tuple[KVShape, ...],
    num_heads: int,
    block_size: int,
    device: torch.device,
    *,
    has_softcap: bool,
) -> bool:
    """Return True if the kernel supports the model and the device. Otherwise log the reason."""
    try:
        if has_softcap:
            raise ValueError("the kernel has no softcap")  # noqa: TRY301  # logged like the others
        major, minor = torch.cuda.get_device_capability(device)
        if (major, minor) < _MIN_CAPABILITY:
            raise ValueError(f"the compute capability {major}.{minor} is below 8.0")  # noqa: TRY301
        for shape in shapes:
            check_results(shape, num_heads, block_size, device)
    except ValueError as error:
        log.info("attention_backend_unavailable", backend="varlen", reason=str(error))
        return False
    return True


@torch.inference_mode()
def check_results(shape: KVShape, num_heads: int, block_size: int, device: torch.device) -> None:
    """Compare the results of `VarlenAttention` and `GatheredAttention` on short sequences.

    Raises:
        ValueError: The kernel does not support the shape, or its results are wrong.
    """
    for lengths, window in _CHECKS:
        num_blocks = sum(-(-(cached + new) // block_size) for cached, new in lengths)
        attentions = (
            VarlenAttention(VarlenKVStore([shape], num_blocks, block_size, device)),
            GatheredAttention(KVStore([shape], num_blocks, block_size, device)),
        )
        for layout in _layouts(lengths, block_size):
            query, key, value = (x.to(device) for x in _inputs(layout, shape, num_heads))
            try:
                result, expected = (
                    _attend(attention, layout, query, key, value, window)
                    for attention in attentions
                )
            except (torch.AcceleratorError, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:  # torch may be built without the kernel
                raise ValueError(f"the kernel fails: {error}") from error
            difference = (result.float() - expected.float()).abs().amax().item()
            if not difference <= _MAX_DIFFERENCE:  # also if it is NaN
                raise ValueError(f"the results of the kernel are wrong by {difference}")


def _layouts(lengths: Sequence[tuple[int, int]], block_size: int) -> list[Layout]:
    """Return the layouts of two steps: the cached tokens, and the new ones."""
    cached, new = [], []
    num_blocks = 0
    for index, (num_cached, num_new) in enumerate(lengths):
        total = num_cached + num_new
        sequence = EngineSequence(index, Request((0,) * total, SamplingParams()), total + 1)
        sequence.block_ids = [num_blocks + i for i in range(-(-total // block_size))]
        num_blocks += len(sequence.block_ids)
        if num_cached:
            cached.append(ScheduledSequence(sequence, num_cached, is_sampled=False))
        new.append((sequence, num_cached, num_new))
    layouts = [Layout.of(Batch(tuple(cached)))]
    for sequence, num_cached, _ in new:
        sequence.num_computed_tokens = num_cached
    scheduled = (ScheduledSequence(sequence, num, is_sampled=True) for sequence, _, num in new)
    return [*layouts, Layout.of(Batch(tuple(scheduled)))]


def _inputs(layout: Layout, shape: KVShape, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values for the rows of a step.

    The values of a sequence start around its index in the step and grow along its positions. So the
    result shows which positions a row attends to.
    """
    generator = torch.Generator().manual_seed(0)
    num_rows = layout.sequences[-1].end

    def normal(num: int) -> Tensor:
        return torch.randn(num, num_rows, shape.key_dim, generator=generator)

    levels = [
        index + position / 1000
        for index, s in enumerate(layout.sequences)
        for position in s.positions
    ]
    value = 0.1 * normal(shape.num_kv_heads) + torch.tensor(levels)[:, None]
    query, key = normal(num_heads), normal(shape.num_kv_heads)
    return query.to(shape.dtype), key.to(shape.dtype), value.to(shape.dtype)


def _attend(
    attention: PagedAttention,
    layout: Layout,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
) -> Tensor:
    attention.begin_step(to_device(attention.plan(layout), query.device))
    return attention.attend(0, query, key, value, query.shape[-1] ** -0.5, window, None)
