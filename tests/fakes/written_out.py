"""The output that an engine must generate, computed by the definitions, one token at a time."""

import math
from dataclasses import dataclass

import torch

from service.domain.engine import FinishReason, Request, TokenLogprobs
from service.engine.sequence import Sequence
from tests.fakes.model import VOCAB_SIZE, logits_after
from tests.support.option_definitions import allowed_tokens, logprobs_of, processed_logit
from tests.support.sampling import sample


@dataclass(frozen=True)
class Written:
    """The whole output of one sequence."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...]


def write_out(request: Request, index: int, max_model_len: int) -> Written:
    """Return the output of the sequence `index`, by the table of `FakeModel`."""
    output: list[int] = []
    logprobs: list[TokenLogprobs] = []
    draws = Sequence(0, request, max_model_len, index)
    limit = max_model_len - len(request.prompt_token_ids)
    if request.sampling.max_tokens is not None:
        limit = min(limit, request.sampling.max_tokens)
    while True:
        raw = logits_after([*request.prompt_token_ids, *output]).tolist()
        allowed = allowed_tokens(request, output, VOCAB_SIZE)
        if not allowed:
            return Written(tuple(output), FinishReason.STOP, tuple(logprobs))
        row = [-math.inf] * VOCAB_SIZE
        for token_id in allowed:
            row[token_id] = processed_logit(raw[token_id], token_id, request, output)
        draw = 0.0 if request.sampling.is_greedy else draws.draw(len(output))
        [token_id] = sample(torch.tensor([row]), [request.sampling], [draw])
        if request.num_logprobs is not None:
            logprobs.append(logprobs_of(raw, token_id, request.num_logprobs))
        output.append(token_id)
        if token_id in request.stop_token_ids:
            return Written(tuple(output), FinishReason.STOP, tuple(logprobs))
        if len(output) == limit:
            return Written(tuple(output), FinishReason.LENGTH, tuple(logprobs))


def write_out_prompt(request: Request) -> tuple[TokenLogprobs, ...]:
    """Return the log probabilities of the prompt, or () if they are not requested."""
    if request.num_prompt_logprobs is None:
        return ()
    prompt = list(request.prompt_token_ids)
    return tuple(
        logprobs_of(logits_after(prompt[:i]).tolist(), prompt[i], request.num_prompt_logprobs)
        for i in range(1, len(prompt))
    )
