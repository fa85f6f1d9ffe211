"""Computes a batch with one of transformers' decoder models and samples from what comes out."""

import inspect
from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.engine.attention import AttentionBatch, PagedAttention, PrefillChunk
from service.engine.core import DeviceLost
from service.engine.sampler import sample
from service.engine.scheduler import Batch, ScheduledSequence
from service.engine.speculation import accept
from service.types import SamplingParams


class ModelRunner:
    """The model, its cache and nothing of who or why.

    Args:
        model: a decoder whose attention implementation is `attention`.
        attention: writes to and reads from the runner's KV store.
        block_size: tokens in a block of that store.
    """

    def __init__(self, model: PreTrainedModel, attention: PagedAttention, block_size: int) -> None:
        self._model = model
        self._attention = attention
        self._block_size = block_size
        self._device = model.device
        # A few models compute the logits of every row whether asked to or not.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[tuple[int, ...]]:
        """See `service.engine.core.Runner.run`."""
        try:
            return self._compute(batch)
        except torch.AcceleratorError as error:  # whatever it was, CUDA repeats it from now on
            raise DeviceLost(str(error)) from error

    def _compute(self, batch: Batch) -> list[tuple[int, ...]]:
        self._attention.batch = self._lay_out(batch)
        logits = self._forward(batch)
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

    def _forward(self, batch: Batch) -> Tensor:
        """Logits after the last token of each sampled sequence, and after each of its draft.

        [B, vocab_size], float32.
        """
        token_ids: list[int] = []
        positions: list[int] = []
        sampled_rows: list[int] = []
        for scheduled in batch.scheduled:
            start = scheduled.sequence.num_computed_tokens
            token_ids.extend(scheduled.token_ids)
            positions.extend(range(start, start + scheduled.num_tokens))
            if scheduled.is_sampled:
                end = len(token_ids)
                sampled_rows.extend(range(end - len(scheduled.draft_token_ids) - 1, end))
        rows = self._tensor(sampled_rows)
        logits: Tensor = self._model(
            input_ids=self._tensor(token_ids)[None],
            position_ids=self._tensor(positions)[None],
            use_cache=False,
            **({"logits_to_keep": rows} if self._keeps_logits else {}),
        ).logits[0]
        return (logits if self._keeps_logits else logits[rows]).float()

    def _lay_out(self, batch: Batch) -> AttentionBatch:
        """Where the batch's tokens go in the cache and what each sees."""
        decodes = [s for s in batch.scheduled if s.num_tokens == 1]
        num_blocks = max((len(s.sequence.block_ids) for s in decodes), default=0)
        tables = [_padded(s.sequence.block_ids, num_blocks) for s in decodes]
        return AttentionBatch(
            slots=self._tensor([slot for s in batch.scheduled for slot in self._slots(s)]),
            num_decodes=len(decodes),
            decode_context_lens=self._tensor([s.sequence.num_computed_tokens + 1 for s in decodes]),
            decode_block_table=self._tensor(tables),
            chunks=tuple(self._chunks(batch, first_row=len(decodes))),
        )

    def _slots(self, scheduled: ScheduledSequence) -> list[int]:
        size, blocks = self._block_size, scheduled.sequence.block_ids
        start = scheduled.sequence.num_computed_tokens
        return [
            blocks[position // size] * size + position % size
            for position in range(start, start + scheduled.num_tokens)
        ]

    def _chunks(self, batch: Batch, first_row: int) -> list[PrefillChunk]:
        chunks = []
        row = first_row
        for scheduled in batch.scheduled[first_row:]:
            context_len = scheduled.sequence.num_computed_tokens + scheduled.num_tokens
            blocks = scheduled.sequence.block_ids[: -(-context_len // self._block_size)]
            end = row + scheduled.num_tokens
            chunks.append(PrefillChunk(row, end, context_len, self._tensor([blocks])))
            row = end
        return chunks

    def _tensor(self, values: list[int] | list[list[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _padded(block_ids: list[int], length: int) -> list[int]:
    return block_ids + block_ids[:1] * (length - len(block_ids))
