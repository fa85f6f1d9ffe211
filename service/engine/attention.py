"""Attention over the paged cache, as a function that transformers' modules call for their own.

A step's tokens lie packed in one row, sequence after sequence: no padding goes through the model,
and any mix of decodes and prompt chunks is one forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from service.engine.kv_store import KVShape, KVStore
from service.errors import ModelLoadError


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Rows [start, end) of a step: the last of one sequence's first `context_len` tokens."""

    start: int
    end: int
    context_len: int
    block_table: Tensor  # [1, M]

    @property
    def num_tokens(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """Where a step's tokens lie and what each may see.

    The first `num_decodes` rows are one token each of as many sequences; the chunks follow.
    """

    slots: Tensor  # [T], where each token's key and value go
    num_decodes: int
    decode_context_lens: Tensor  # [num_decodes]
    decode_block_table: Tensor  # [num_decodes, M], padded with any valid block
    chunks: tuple[PrefillChunk, ...]
    masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def decode_mask(self, length: int, window: int | None) -> Tensor:
        """[num_decodes, length]: True where the token sees a position. Made once a step."""
        if (mask := self.masks.get((-1, window))) is None:
            query = self.decode_context_lens[:, None] - 1
            mask = self.masks[-1, window] = _visible(query, length, window)
        return mask

    def chunk_mask(self, index: int, window: int | None) -> Tensor:
        """[tokens of the chunk, its context_len], likewise."""
        if (mask := self.masks.get((index, window))) is None:
            chunk = self.chunks[index]
            query = torch.arange(
                chunk.context_len - chunk.num_tokens, chunk.context_len, device=self.slots.device
            )
            mask = self.masks[index, window] = _visible(query[:, None], chunk.context_len, window)
        return mask


class PagedAttention:
    """The attention function of one runner: writes keys and values to its store, reads them back.

    `batch` is set before each forward pass. Registered with transformers under a name of its own,
    since the registry is global and runners are not.
    """

    def __init__(self, store: KVStore) -> None:
        self._store = store
        self.batch: AttentionBatch

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,  # noqa: ARG002  # the batch says what each token sees
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **_: object,
    ) -> tuple[Tensor, None]:
        """Attend with `query` [1, num_heads, T, dim], `key` and `value` [1, num_kv_heads, T, dim].

        Returns:
            [1, T, num_heads, value_dim], and no weights.
        """
        batch, layer = self.batch, layer_index(module)
        self._store.write(layer, batch.slots, key[0], value[0])
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        rows = query[0]
        parts = []
        if batch.num_decodes:
            keys, values = self._store.gather(layer, batch.decode_block_table)
            mask = batch.decode_mask(keys.shape[2], sliding_window)
            decodes = rows[:, : batch.num_decodes]
            parts.append(_decode(decodes, keys, values, mask, scale, softcap))
        for index, chunk in enumerate(batch.chunks):
            keys, values = self._store.gather(layer, chunk.block_table)
            parts.append(
                _prefill(
                    rows[:, chunk.start : chunk.end],
                    keys[:, 0, : chunk.context_len],
                    values[:, 0, : chunk.context_len],
                    batch.chunk_mask(index, sliding_window),
                    scale,
                    softcap,
                )
            )
        return torch.cat(parts).unsqueeze(0), None


# What transformers' modules tell an attention function that PagedAttention obeys or need not know.
_UNDERSTOOD = {
    "scaling",
    "sliding_window",
    "softcap",
    "is_causal",
    "dropout",  # 0 but in training
    "position_ids",  # those that the runner gave
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
}


class ShapeProbe:
    """An attention function that attends to nothing and records what each layer tells it: the
    shapes of its keys and values, its sliding window."""

    def __init__(self) -> None:
        self.shapes: dict[int, KVShape] = {}
        self.windows: dict[int, object] = {}

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: object,
    ) -> tuple[Tensor, None]:
        """Raises ModelLoadError for a kind of attention that PagedAttention does not compute."""
        layer, kind = layer_index(module), type(module).__name__
        for name, value_given in (kwargs | {"attention_mask": attention_mask}).items():
            if value_given is not None and name not in _UNDERSTOOD:
                raise ModelLoadError(f"{kind} attends with {name}, which is not served.")
        if False in (kwargs.get("is_causal"), getattr(module, "is_causal", None)):
            raise ModelLoadError(f"{kind} sees the tokens to come, which is not served.")
        if layer in self.shapes:
            raise ModelLoadError(f"{kind} attends more than once a layer, which is not served.")
        self.windows[layer] = kwargs.get("sliding_window")
        self.shapes[layer] = KVShape(key.shape[1], key.shape[-1], value.shape[-1], key.dtype)
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def layer_index(module: nn.Module) -> int:
    """The layer that an attention module of transformers belongs to.

    Raises:
        ModelLoadError: it does not say.
    """
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ModelLoadError(f"{type(module).__name__} does not say which layer it is.")
    return index


def register(name: str, function: Callable[..., tuple[Tensor, None]]) -> str:
    """Make `function` an attention implementation of transformers, under `name`."""
    AttentionInterface.register(name, function)
    return name


def _visible(query_positions: Tensor, length: int, window: int | None) -> Tensor:
    """[N, length]: the positions a query at [N, 1] sees: its own and before, within its window."""
    positions = torch.arange(length, device=query_positions.device)
    visible = positions <= query_positions
    if window is not None:
        visible &= positions > query_positions - window
    return visible


def _decode(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """One token each of B sequences.

    query [H, B, dim], keys and values [KVH, B, L, dim], mask [B, L].

    The query heads of a group are rows of one product. Far faster on a CPU than
    `scaled_dot_product_attention` with a query length of 1, which takes 8.5 ms where this takes
    0.6.

    Returns:
        [B, H, value_dim]
    """
    num_kv_heads, num_sequences, _, dim = keys.shape
    grouped = query.reshape(num_kv_heads, -1, num_sequences, dim).transpose(1, 2)
    scores = grouped @ keys.transpose(-1, -2) * scale
    weights = _softmax(scores, mask[:, None, :], softcap)
    return (weights @ values).transpose(0, 1).flatten(1, 2)


def _prefill(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, softcap: float | None
) -> Tensor:
    """N tokens of one sequence: query [H, N, dim], keys and values [KVH, L, dim], mask [N, L].

    Returns:
        [N, H, value_dim]
    """
    if softcap is None:
        attended = F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, scale=scale, enable_gqa=True
        )[0]
    else:
        grouped = query.reshape(keys.shape[0], -1, *query.shape[1:])  # [KVH, group, N, dim]
        scores = grouped @ keys[:, None].transpose(-1, -2) * scale
        attended = (_softmax(scores, mask, softcap) @ values[:, None]).flatten(0, 1)
    return attended.transpose(0, 1)


def _softmax(scores: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """The attention weights of raw scores, computed in float32 as transformers does."""
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    masked = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(masked, dim=-1, dtype=torch.float32).to(scores.dtype)
