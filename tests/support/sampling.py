"""Samples tokens and computes log probabilities as a step does, in one call, on `TORCH_DEVICE`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.domain.engine import TokenLogprobs
from service.domain.sampling import SamplingParams
from service.engine.logprobs import LogprobTensors, token_logprobs
from service.engine.sampler import SamplerBatch
from service.engine.transfer import to_device, to_host
from tests.support.device import TORCH_DEVICE


def sample(logits: Tensor, params: Sequence[SamplingParams], draws: Sequence[float]) -> list[int]:
    """Return one token id for each row of logits [B, vocab_size]."""
    logits = logits.to(TORCH_DEVICE)
    batch = SamplerBatch(params, draws, logits.device)
    [token_ids] = to_host([batch.sample(logits, to_device(batch.arrays, logits.device))])
    sampled: list[int] = token_ids.tolist()
    return sampled


def logprobs_of(logits: Tensor, tokens: Sequence[tuple[int, int, int]]) -> list[TokenLogprobs]:
    """Return the log probabilities of tokens.

    Args:
        logits: [B, vocab_size].
        tokens: Triples of a row, a token id and the number of most likely tokens to return.
    """
    logits = logits.to(TORCH_DEVICE)
    rows, token_ids, num_top = zip(*tokens, strict=True)
    tensors = LogprobTensors.of(
        logits,
        torch.tensor(rows, device=logits.device),
        torch.tensor(token_ids, device=logits.device),
        max(num_top),
    )
    return token_logprobs(to_host(tensors), num_top)
