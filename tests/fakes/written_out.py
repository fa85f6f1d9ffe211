"""The output that an engine must generate, computed by the definitions, one token at a time."""

import math
from dataclasses import dataclass

import torch

from service.domain.engine import FinishReason, Request, TokenLogprobs
from service.engine.sequence import Sequence
from tests.fakes.model import VOCAB_SIZE, logits_after
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
        allowed = [t for t in range(VOCAB_SIZE) if _may_come(t, request, output)]
        if not allowed:
            return Written(tuple(output), FinishReason.STOP, tuple(logprobs))
        row = [
            _processed(raw[t], t, request, output) if t in allowed else -math.inf
            for t in range(VOCAB_SIZE)
        ]
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


def logprobs_of(logits: list[float], token_id: int, num_top: int) -> TokenLogprobs:
    total = math.log(sum(math.exp(logit) for logit in logits))
    ranked = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:num_top]
    top = tuple((t, logits[t] - total) for t in ranked)
    return TokenLogprobs(token_id, logits[token_id] - total, top)


def _may_come(token_id: int, request: Request, output: list[int]) -> bool:
    p = request.sampling
    if p.allowed_token_ids is not None and token_id not in p.allowed_token_ids:
        return False
    if len(output) < p.min_tokens and token_id in request.stop_token_ids:
        return False
    longer = [*output, token_id]
    if any(longer[-len(bad) :] == list(bad) for bad in request.bad_token_sequences):
        return False
    if request.constraint is None:
        return True
    matcher = request.constraint.matcher()
    for generated in output:
        matcher.advance(generated)
    bits = int.from_bytes(matcher.allowed_tokens(), "little")
    return bool(bits >> token_id & 1)


def _processed(logit: float, token_id: int, request: Request, output: list[int]) -> float:
    p = request.sampling
    logit += p.logit_bias.get(token_id, 0.0)
    if token_id in output or token_id in request.prompt_token_ids:
        factor = p.repetition_penalty
        logit = logit / factor if logit > 0 else logit * factor
    count = output.count(token_id)
    return logit - p.frequency_penalty * count - p.presence_penalty * (count > 0)
