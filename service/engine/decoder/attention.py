"""Attention of the native decoder: from a layer's qkv projection to the input of its output
projection."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from service.engine.attention import PagedAttention
from service.engine.decoder.architecture import Architecture
from service.engine.decoder.linear import RmsNorm
from service.engine.layout import Layout
from service.engine.native.attention import (
    AttentionPlan,
    NativeAttention,
    NativeKVStore,
    RotaryRows,
)

CosSin = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The parameters of one layer's attention."""

    index: int
    window: int | None
    query_norm: RmsNorm | None
    key_norm: RmsNorm | None


class Attention(Protocol):
    """Applies rotary embeddings, writes keys and values to the cache, and attends over it.

    `service.engine.decoder.attention_backends` lists the implementations.
    """

    def block_tensors(self) -> list[Tensor]:
        """Return the KV cache as tensors, each with the blocks as its first dimension."""
        ...

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        """Plan the next step. Return the arrays that `begin_step` needs on the device."""
        ...

    def begin_step(self, arrays: Sequence[Tensor], ropes: dict[str, CosSin]) -> None:
        """Begin the planned step.

        Args:
            arrays: The arrays of `plan`, on the device.
            ropes: Two tensors [T, pairs] for each rotary embedding, by its name: the cosines and
                the sines at the rows' positions.
        """
        ...

    def attend(self, layer: LayerAttention, rope: str | None, qkv: Tensor) -> Tensor:
        """Compute the attention of one layer for the T rows of the step.

        Args:
            rope: The name of the layer's rotary embedding; None if it has none.
            qkv: [T, (num_heads + 2 num_kv_heads) * head_dim].

        Returns:
            [T, num_heads * head_dim]
        """
        ...


class TorchAttention:
    """`Attention` in torch, for any device and any head size."""

    def __init__(
        self, architecture: Architecture, paged: PagedAttention, dtype: torch.dtype
    ) -> None:
        self._architecture = architecture
        self._dtype = dtype
        self._paged = paged
        self._ropes: dict[str, CosSin] = {}

    def block_tensors(self) -> list[Tensor]:
        return self._paged.block_tensors()

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        return self._paged.plan(layout)

    def begin_step(self, arrays: Sequence[Tensor], ropes: dict[str, CosSin]) -> None:
        self._paged.begin_step(arrays)
        self._ropes = ropes

    def attend(self, layer: LayerAttention, rope: str | None, qkv: Tensor) -> Tensor:
        a = self._architecture
        heads = qkv.view(len(qkv), -1, a.head_dim).transpose(0, 1)
        query, key, value = torch.split(heads, [a.num_heads, a.num_kv_heads, a.num_kv_heads])
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = layer.query_norm(query), layer.key_norm(key)
        if rope is not None:
            query, key = (_rotate(x, *self._ropes[rope]) for x in (query, key))
        attended = self._paged.attend(
            layer.index,
            query.to(self._dtype),
            key.to(self._dtype),
            value.to(self._dtype),
            a.attention_scale,
            layer.window,
            a.attention_softcap,
        )
        return attended.flatten(1).to(qkv.dtype)


class NativeDecoderAttention:
    """`Attention` by the native kernels, with one call per layer.

    Args:
        layers: Every layer that `attend` will be called for.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        architecture: Architecture,
        layers: list[LayerAttention],
        store: NativeKVStore,
    ) -> None:
        """Prepare the layers.

        Raises:
            ValueError: The kernels do not support the number of heads.
        """
        self._store = store
        self._block_size = store.block_size
        self._layers = {
            layer.index: NativeAttention(
                library,
                store,
                layer.index,
                num_heads=architecture.num_heads,
                scale=architecture.attention_scale,
                window=layer.window,
                softcap=architecture.attention_softcap,
                q_norm=_weight(layer.query_norm),
                k_norm=_weight(layer.key_norm),
                norm_eps=architecture.norm_eps,
            )
            for layer in layers
        }
        self._plan: AttentionPlan
        self._ropes: dict[str | None, RotaryRows | None]

    def block_tensors(self) -> list[Tensor]:
        return self._store.block_tensors()

    def plan(self, layout: Layout) -> list[NDArray[Any]]:
        self._plan = AttentionPlan(
            [s.num_rows for s in layout.sequences],
            [s.context_len for s in layout.sequences],
            [s.block_ids(self._block_size) for s in layout.sequences],
            self._block_size,
        )
        return []

    def begin_step(self, arrays: Sequence[Tensor], ropes: dict[str, CosSin]) -> None:  # noqa: ARG002
        self._ropes = {name: RotaryRows(*cos_sin) for name, cos_sin in ropes.items()} | {None: None}

    def attend(self, layer: LayerAttention, rope: str | None, qkv: Tensor) -> Tensor:
        attended = self._layers[layer.index](self._plan, qkv.float(), self._ropes[rope])
        return attended.to(qkv.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate `x` [heads, T, dim]: dimension i together with i + pairs, for each i < pairs."""
    num_pairs = cos.shape[-1]
    first, second = x[..., :num_pairs], x[..., num_pairs : 2 * num_pairs]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat([*turned, x[..., 2 * num_pairs :]], dim=-1).to(x.dtype)


def _weight(norm: RmsNorm | None) -> Tensor | None:
    return None if norm is None else norm.weight
