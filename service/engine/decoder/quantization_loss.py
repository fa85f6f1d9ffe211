"""Measures a model's loss on a short text, with int8 weights and with the original weights.

The reference is computed layer by layer while the model is loaded. So at most one layer is in
memory in both precisions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.attention import GatheredAttention
from service.engine.batch import ScheduledSequence
from service.engine.decoder.architecture import Architecture
from service.engine.decoder.attention import TorchAttention
from service.engine.decoder.decoder import (
    Decoder,
    read_embedding,
    read_head,
    read_layer,
    rounded_embedding_scale,
    run_layer,
    soft_capped,
)
from service.engine.decoder.linear import FloatLinear
from service.engine.decoder.rope import make_ropes
from service.engine.decoder.weights import Weights
from service.engine.kv_store import KVShape, KVStore
from service.engine.layout import Layout, SequenceRows
from service.engine.sequence import Sequence
from service.engine.transfer import to_device

BLOCK_SIZE = 16

_ROWS = 32  # rows whose logits are in memory at once


class ReferenceRun:
    """Computes a text through the layers of a checkpoint in floating point.

    Args:
        token_ids: The token ids of the text.
        weights: The checkpoint's weights in the type `dtype`.
        config: The model's config.
    """

    def __init__(
        self,
        token_ids: tuple[int, ...],
        weights: Weights,
        config: Any,
        architecture: Architecture,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        a = architecture
        self._token_ids = token_ids
        self._weights = weights
        self._architecture = a
        self._dtype = dtype
        shapes = [KVShape(a.num_kv_heads, a.head_dim, a.head_dim, dtype)] * len(a.layers)
        store = KVStore(shapes, num_blocks(token_ids), BLOCK_SIZE, device)
        self._attention = TorchAttention(a, GatheredAttention(store), dtype)
        positions = torch.arange(len(token_ids), device=device)
        ropes = make_ropes(config, a, len(token_ids), device)
        arrays = self._attention.plan(_whole(token_ids))
        self._attention.begin_step(
            to_device(arrays, device), {name: rope.at(positions) for name, rope in ropes.items()}
        )
        embedding = read_embedding(weights, a, dtype)
        rows = embedding(torch.tensor(token_ids, device=device))
        self._x = rows * rounded_embedding_scale(a, dtype)

    @torch.inference_mode()
    def pass_layer(self, index: int) -> None:
        """Compute layer `index`. Call it for each layer in order."""
        layer = read_layer(index, self._weights, self._architecture, FloatLinear, self._dtype)
        self._x = run_layer(layer, self._x, self._attention)

    @torch.inference_mode()
    def loss(self) -> float:
        """Return the mean loss of the text in nats per token, after all layers are computed."""
        a = self._architecture
        head = read_head(self._weights, a, FloatLinear, self._dtype)
        targets = self._token_ids[1:]
        total = sum(
            _summed_loss(soft_capped(head(rows).float(), a.logits_softcap), targets, start)
            for start, rows in _parts(self._x[:-1])
        )
        return total / len(targets)


@torch.inference_mode()
def loss_of(decoder: Decoder, token_ids: tuple[int, ...]) -> float:
    """Return the mean loss of a text in nats per token.

    The decoder's cache must have at least `num_blocks(token_ids)` blocks of BLOCK_SIZE tokens.
    """
    targets = token_ids[1:]
    hidden = decoder.forward(_whole(token_ids), list(range(len(targets))))
    total = sum(
        _summed_loss(decoder.logits(rows), targets, start) for start, rows in _parts(hidden)
    )
    return total / len(targets)


def num_blocks(token_ids: tuple[int, ...]) -> int:
    """Return the number of blocks that a text needs."""
    return -(-len(token_ids) // BLOCK_SIZE)


def _parts(hidden: Tensor) -> list[tuple[int, Tensor]]:
    """Split rows into parts of `_ROWS`, each with the index of its first row."""
    return [(start, hidden[start : start + _ROWS]) for start in range(0, len(hidden), _ROWS)]


def _summed_loss(logits: Tensor, targets: tuple[int, ...], start: int) -> float:
    part = torch.tensor(targets[start : start + len(logits)], device=logits.device)
    return F.cross_entropy(logits, part, reduction="sum").double().item()


def _whole(token_ids: tuple[int, ...]) -> Layout:
    """Return the layout of a step that computes one whole sequence."""
    num_tokens = len(token_ids)
    sequence = Sequence(0, Request(token_ids, SamplingParams()), num_tokens + 1)
    sequence.block_ids = list(range(num_blocks(token_ids)))
    scheduled = ScheduledSequence(sequence, num_tokens, is_sampled=True)
    return Layout((SequenceRows(scheduled, 0, num_tokens, num_tokens),))
