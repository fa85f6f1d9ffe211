"""Computes a batch with a model and samples from what comes out."""

from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from service.engine.core import DeviceLost
from service.engine.layout import Layout
from service.engine.sampler import sample
from service.engine.scheduler import Batch
from service.engine.speculation import accept
from service.types import SamplingParams


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
    def run(self, batch: Batch) -> list[tuple[int, ...]]:
        """See `service.engine.core.Runner.run`."""
        try:
            return self._compute(batch)
        except torch.AcceleratorError as error:  # whatever it was, CUDA repeats it from now on
            raise DeviceLost(str(error)) from error

    def _compute(self, batch: Batch) -> list[tuple[int, ...]]:
        layout = Layout.of(batch)
        logits = self._model.forward(layout, layout.sampled_rows())
        if not batch.sampled:
            return []
        params: list[SamplingParams] = []
        draws: list[float] = []
        for scheduled in batch.sampled:
            sequence, sampling = scheduled.sequence, scheduled.sequence.request.sampling
            for i in range(1 + len(scheduled.draft_token_ids)):
                params.append(sampling)
                position = sequence.num_output_tokens + i
                draws.append(0.0 if sampling.is_greedy else sequence.draw(position))
        token_ids = iter(sample(logits, params, draws))
        return [
            accept(list(islice(token_ids, 1 + len(s.draft_token_ids))), s.draft_token_ids)
            for s in batch.sampled
        ]
