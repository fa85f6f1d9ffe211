"""The choice of the lengths of drafts: a draft token is computed if it is expected to save time.

No torch, no clock.
"""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from service.engine.sequence import Sequence
from service.engine.speculation import Acceptance
from service.engine.step_time import StepSize, StepTime

# The expected gain of a draft token must be this multiple of its cost, because both are estimates.
_MIN_GAIN = 1.1


@dataclass(frozen=True, slots=True)
class DraftCandidate:
    """A sequence for which a draft can be computed.

    Attributes:
        max_length: Maximum length of the draft.
        acceptance: Probabilities that the tokens of the draft are accepted.
        num_tokens: Number of tokens before the draft. Its first token attends to one more.
        forced: The tokens that the sequence's grammar forces, which are the draft; empty if the
            grammar leaves a choice.
    """

    max_length: int
    acceptance: Acceptance
    num_tokens: int
    forced: tuple[int, ...] = ()

    @classmethod
    def of(cls, sequence: Sequence, max_length: int) -> "DraftCandidate | None":
        """Return the candidate of a sequence for which a token is sampled; None if there is no
        draft."""
        # The step samples one more token after the draft.
        num_useful = sequence.max_tokens - sequence.num_output_tokens - 1
        max_length = min(max_length, num_useful)
        if max_length <= 0:
            return None
        if sequence.grammar is not None and (forced := sequence.grammar.forced_tokens()):
            return cls(
                min(max_length, len(forced)), Acceptance(1.0, 1.0), sequence.num_tokens, forced
            )
        acceptance = sequence.lookup.acceptance(sequence.token_ids)
        return cls(max_length, acceptance, sequence.num_tokens) if acceptance is not None else None


def draft_lengths(
    candidates: list[DraftCandidate],
    step_time: StepTime,
    step: StepSize,
    decode: StepSize,
    *,
    max_step_s: float,
    max_tokens: int,
) -> list[int]:
    """Return the length of each draft.

    Without drafts, a step of decoding sequences generates one token for each. A draft token is
    added if it generates more tokens per second, by its probability of being accepted and its
    predicted cost, than the step does without it. The most probable token is added first. Tokens
    that a grammar forces are always added, because they must be computed anyway.

    Args:
        step: The size of the step without drafts.
        decode: The size of a step that only generates one token for each sampled sequence.
        max_step_s: Maximum predicted duration of the step with drafts, in seconds.
        max_tokens: Maximum number of draft tokens of all sequences together.
    """
    lengths = [0] * len(candidates)
    num_expected, decode_s = float(decode.num_tokens), step_time.predict(decode)
    step_s = step_time.predict(step)
    queue = [(-c.acceptance.first, i) for i, c in enumerate(candidates) if c.max_length]
    heapify(queue)
    num_left = max_tokens
    while queue and num_left:
        minus_probability, i = heappop(queue)
        candidate = candidates[i]
        larger = StepSize.total((step, StepSize(1, 1, candidate.num_tokens + lengths[i] + 1)))
        cost_s = step_time.predict(larger) - step_s
        gain_s = -minus_probability * decode_s / num_expected
        if step_s + cost_s > max_step_s:
            continue
        if not candidate.forced and gain_s < _MIN_GAIN * cost_s:
            continue
        step, step_s, decode_s = larger, step_s + cost_s, decode_s + cost_s
        num_expected -= minus_probability
        lengths[i] += 1
        num_left -= 1
        if lengths[i] < candidate.max_length:
            heappush(queue, (minus_probability * candidate.acceptance.following, i))
    return lengths
