"""The operator of `torch.nn.attention.varlen` on devices for which torch has no kernel.

It computes what the kernel of CUDA computes, sequence by sequence in float32, and rejects what the
kernel rejects. See `mha_varlen_fwd` in PyTorch's
aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

_PAGE = 256

_library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of a call that choose how the kernel works."""

    max_rows: int
    max_context: int
    window: tuple[int | None, int | None]
    num_splits: int | None


Fault = Literal["nan", "first_rows", "half_context", "missing"]

# What a call on a simulated device adds to its counts. It computes on the CPU.
READS_PER_CALL, WRITES_PER_CALL = 6, 1

calls: list[Call] = []
_faults: list[Fault] = []


def install(dispatch_key: str) -> None:
    """Register the operator for the tensors of a dispatch key, such as `CPU`."""
    _library.impl("_flash_attention_forward", _forward, dispatch_key)  # type: ignore[no-untyped-call]


@contextmanager
def fault(kind: Fault) -> Iterator[None]:
    """The operator gives wrong results or fails while in the context.

    The results are NaNs, only those of the first sequence are written, only the first half of each
    context is used, or there is no kernel.
    """
    _faults.append(kind)
    try:
        yield
    finally:
        _faults.remove(kind)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_starts: Tensor,
    key_starts: Tensor | None,
    max_rows: int,
    max_context: int,
    dropout: float,
    is_causal: bool,  # the operator's own signature
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if "missing" in _faults:
        raise NotImplementedError("there is no kernel")
    _check(query, key, value, row_starts, seqused_k, block_table)
    assert (key_starts, dropout, return_debug_mask, alibi_slopes) == (None, 0.0, False, None)
    is_swapped = max_rows == 1 and query.shape[1] > key.shape[2] and window_size_right == -1
    # https://github.com/pytorch/pytorch/issues/194167
    assert num_splits == 1 or is_swapped, "the kernel would put the parts together wrongly"
    calls.append(Call(max_rows, max_context, (window_size_left, window_size_right), num_splits))
    device = query.device
    query, key, value, row_starts, seqused_k, block_table = (
        t.cpu() for t in (query, key, value, row_starts, seqused_k, block_table)
    )
    starts, lengths = row_starts.tolist(), seqused_k.tolist()
    assert max(b - a for a, b in pairwise(starts)) <= max_rows
    assert max(lengths) <= max_context
    group = query.shape[1] // key.shape[2]
    out = torch.full_like(query, torch.nan)
    for i, length in enumerate(lengths):
        rows = query[starts[i] : starts[i + 1]].float()
        table = block_table[i].long()
        keys, values = (
            x[table].flatten(0, 1)[:length].float().repeat_interleave(group, 1)
            for x in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", rows, keys) * scale
        own = torch.arange(length - len(rows), length)[:, None]
        positions = torch.arange(length)
        is_hidden = torch.zeros(len(rows), length, dtype=torch.bool)
        if is_causal or window_size_right == 0:
            is_hidden |= positions > own
        if window_size_left is not None and window_size_left >= 0:
            is_hidden |= positions < own - window_size_left
        if "half_context" in _faults:
            is_hidden |= (positions > length // 2) & (positions < length - len(rows))
        weights = scores.masked_fill(is_hidden, -torch.inf).softmax(-1)
        out[starts[i] : starts[i + 1]] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)
    if "first_rows" in _faults:
        out[starts[1] :] = 0.0
    if "nan" in _faults:
        out[-1] = torch.nan
    none = torch.empty(0, device=device)
    return out.to(device), none, none, none, none


def _check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_starts: Tensor,
    seqused_k: Tensor,
    block_table: Tensor,
) -> None:
    # The kernel has no float32. Tests need it, to compare outputs token by token.
    assert query.dtype in {torch.float16, torch.bfloat16, torch.float32}
    assert key.dtype == query.dtype == value.dtype
    numbers = (row_starts, seqused_k, block_table)
    assert all(t.dtype == torch.int32 for t in numbers)
    assert all(t.stride(-1) == 1 for t in (query, key, value, *numbers))
    assert row_starts.is_contiguous()
    assert seqused_k.is_contiguous()
    assert key.shape == value.shape
    assert key.shape[1] % _PAGE == 0
    assert key.shape[-1] == query.shape[-1]
    assert query.shape[-1] % 8 == 0
    assert query.shape[-1] <= 256
    assert query.shape[1] % key.shape[2] == 0
    assert len(block_table) == len(seqused_k) == len(row_starts) - 1
