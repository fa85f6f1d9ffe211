"""Computes a batch with a model and samples from what comes out."""

from typing import Protocol

import torch
from torch import Tensor

from service.engine.layout import Layout
from service.engine.sampler import sample
from service.engine.scheduler import Batch


class Model(Protocol):
    """A decoder and the cache of its keys and values."""

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step, and write its keys and values into the cache.

        Returns:
            The logits after each of `rows`: [len(rows), vocab_size], float32.
        """
        ...


class ModelRunner:
    """`service.engine.core.Runner`: the model, and nothing of who or why."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[int]:
        """Compute the batch, and sample the next token of each sequence of `batch.sampled`."""
        layout = Layout.of(batch)
        sampled = layout.sampled_rows()
        logits = self._model.forward(layout, [row for _, rows in sampled for row in rows])
        sequences = [scheduled.sequence for scheduled, _ in sampled]
        if not sequences:
            return []
        params = [s.request.sampling for s in sequences]
        draws = [
            0.0 if p.is_greedy else s.rng.random() for s, p in zip(sequences, params, strict=True)
        ]
        token_ids = sample(logits, params, draws)
        chosen = {s.id: t for s, t in zip(sequences, token_ids, strict=True)}
        return [chosen[s.id] for s in batch.sampled]
