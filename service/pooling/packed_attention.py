"""Attention over packed inputs: each input attends only to itself, without padding or masks."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from service.pooling.batch import Group

NAME = "chatrpc-packed"


class PackedAttention:
    """transformers' attention function for a batch of packed inputs.

    Inputs of equal length are computed in one call. The numbers of an input do not depend on the
    others in the call.

    Attributes:
        groups: The inputs of the batch that is computed.
        num_calls: Number of layers computed so far.
    """

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self.num_calls = 0

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *_masks: Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """Compute a layer.

        Args:
            query: [1, num_heads, T, head_dim] for all T tokens of the batch.
            key: [1, num_kv_heads, T, head_dim].
            value: [1, num_kv_heads, T, value_dim].
            sliding_window: A token attends to those at a smaller distance than this.

        Returns:
            [1, T, num_heads, value_dim].

        Raises:
            NotImplementedError: The layer caps its scores.
        """
        if softcap is not None:
            raise NotImplementedError("softcap")
        self.num_calls += 1
        causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
        output = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        for group in self.groups:
            has_window = sliding_window is not None and group.length > sliding_window
            mask = _window(group.length, sliding_window or 0, query, causal) if has_window else None
            result = scaled_dot_product_attention(
                _of_group(query, group),
                _of_group(key, group),
                _of_group(value, group),
                attn_mask=mask,
                is_causal=causal and mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
            rows = output[group.start : group.start + group.size * group.length]
            rows.view(group.size, group.length, *output.shape[1:]).copy_(result.transpose(1, 2))
        return output[None], None


def _of_group(states: Tensor, group: Group) -> Tensor:
    """Return what a group has of `states`, [1, heads, T, dim], as [size, heads, length, dim]."""
    part = states[0, :, group.start : group.start + group.size * group.length]
    heads, _, dim = part.shape
    return part.view(heads, group.size, group.length, dim).transpose(0, 1)


def _window(length: int, window: int, like: Tensor, is_causal: bool) -> Tensor:
    """Return the mask of a sliding window, [length, length]: True where a token attends."""
    at = torch.arange(length, device=like.device)
    distance = at[:, None] - at[None, :]
    mask = distance.abs() < window
    return mask & (distance >= 0) if is_causal else mask


def register(attention: PackedAttention) -> str:
    """Make an attention available to transformers' models. Return its name for them."""
    AttentionInterface.register(NAME, attention)
    return NAME
