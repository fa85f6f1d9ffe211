"""Computes the logits of a checkpoint with our engine."""

from collections.abc import Sequence

import torch

from service.domain.engine import Request
from service.domain.sampling import SamplingParams
from service.engine.batch import ScheduledSequence
from service.engine.layout import Layout, SequenceRows
from service.engine.load import EngineOptions, load_model
from service.engine.sequence import Sequence as EngineSequence

_BLOCK_SIZE = 16


@torch.inference_mode()
def logprobs_of(options: EngineOptions, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the log probabilities [T, vocab_size] after each token of one sequence."""
    num_tokens = len(token_ids)
    num_blocks = -(-num_tokens // _BLOCK_SIZE)
    model = load_model(options).finish(num_blocks, _BLOCK_SIZE, num_tokens)
    sequence = EngineSequence(0, Request(tuple(token_ids), SamplingParams()), num_tokens + 1)
    sequence.block_ids = list(range(num_blocks))
    scheduled = ScheduledSequence(sequence, num_tokens, is_sampled=True)
    layout = Layout((SequenceRows(scheduled, 0, num_tokens, num_tokens),))
    return torch.log_softmax(model.logits(model.forward(layout, list(range(num_tokens)))), dim=-1)
