"""The options of an engine's request by their definitions, for one token. No torch."""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

from service.domain.engine import Request, TokenLogprobs
from service.domain.sampling import SamplingParams


def allowed_tokens(request: Request, output: Sequence[int], vocab_size: int) -> list[int]:
    """Return the token ids that may follow `output`, in ascending order."""
    p = request.sampling
    allowed = set(range(vocab_size))
    if p.allowed_token_ids is not None:
        allowed &= p.allowed_token_ids
    if len(output) < p.min_tokens:
        allowed -= request.stop_token_ids
    allowed -= set(_ends_of_bad_sequences(request, output))
    if request.constraint is not None:
        matcher = request.constraint.matcher()
        for token_id in output:
            matcher.advance(token_id)
        bits = int.from_bytes(matcher.allowed_tokens(), "little")
        allowed = {token_id for token_id in allowed if bits >> token_id & 1}
    return sorted(allowed)


def _ends_of_bad_sequences(request: Request, output: Sequence[int]) -> Iterator[int]:
    for *before, last in request.bad_token_sequences:
        if list(output[len(output) - len(before) :]) == before:
            yield last


def processed_logit(logit: float, token_id: int, request: Request, output: Sequence[int]) -> float:
    """Return a token's logit after bias and penalties."""
    p = request.sampling
    logit += p.logit_bias.get(token_id, 0.0)
    if token_id in output or token_id in request.prompt_token_ids:
        factor = p.repetition_penalty
        logit = logit / factor if logit > 0 else logit * factor
    count = output.count(token_id)
    return logit - p.frequency_penalty * count - p.presence_penalty * (count > 0)


def probabilities(
    logits: dict[int, float], params: SamplingParams, slack: float = 0.0
) -> dict[int, float]:
    """Return the probabilities of the tokens that may be sampled, after temperature and filters.

    Args:
        logits: The processed logits of the allowed tokens.
        slack: Share of a probability by which a token may miss the bound of a filter.
    """
    if params.is_greedy:
        return {max(logits, key=lambda token_id: (logits[token_id], -token_id)): 1.0}
    highest = max(logits.values())
    weights = {t: math.exp((logit - highest) / params.temperature) for t, logit in logits.items()}
    least = params.min_p * (1 - slack)
    kept = sorted((t for t, w in weights.items() if w >= least), key=lambda t: (-weights[t], t))
    if 0 < params.top_k < len(kept):
        least = weights[kept[params.top_k - 1]] * (1 - slack)
        kept = [t for t in kept if weights[t] >= least]
    before = [0.0, *accumulate(weights[t] for t in kept)]
    limit = (params.top_p + slack) * before[-1]
    kept = [t for t, mass in zip(kept, before, strict=False) if mass < limit]
    total = sum(weights[t] for t in kept)
    return {t: weights[t] / total for t in kept}


def logprobs_of(logits: Sequence[float], token_id: int, num_top: int) -> TokenLogprobs:
    """Return the log probability of a token, and the `num_top` most likely tokens."""
    highest = max(logits)
    total = highest + math.log(sum(math.exp(logit - highest) for logit in logits))
    ranked = sorted(range(len(logits)), key=lambda t: (-logits[t], t))[:num_top]
    top = tuple((t, logits[t] - total) for t in ranked)
    return TokenLogprobs(token_id, logits[token_id] - total, top)
