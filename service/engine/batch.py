"""The input of one step: the sequences and tokens that it computes. No torch."""

from dataclasses import dataclass

from service.engine.sequence import Sequence
from service.engine.step_time import StepSize


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """A sequence's part of a batch.

    Attributes:
        num_new_tokens: Number of uncomputed tokens that the step computes, from the first on.
        is_sampled: True if these are all uncomputed tokens, so that the step samples the next one.
        draft_token_ids: The draft tokens that follow, which the step computes and checks.
    """

    sequence: Sequence
    num_new_tokens: int
    is_sampled: bool
    draft_token_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.num_new_tokens + len(self.draft_token_ids)

    @property
    def size(self) -> StepSize:
        """The sequence's part of the size of the step."""
        num_tokens, start = self.num_tokens, self.sequence.num_computed_tokens
        num_logits = 1 + len(self.draft_token_ids) if self.is_sampled else 0
        if self.sequence.prompt_logprobs is not None:
            num_logits = num_tokens
        num_positions = num_tokens * start + num_tokens * (num_tokens + 1) // 2
        is_decode = self.num_new_tokens == 1
        return StepSize(
            num_tokens,
            num_logits,
            num_positions if is_decode else 0,
            0 if is_decode else num_positions,
        )

    @property
    def token_ids(self) -> list[int]:
        """The `num_tokens` tokens that the model computes, from `num_computed_tokens` on."""
        start = self.sequence.num_computed_tokens
        new = self.sequence.token_ids[start : start + self.num_new_tokens]
        return [*new, *self.draft_token_ids]


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of one step: sequences with a single token first, then drafts and prompts."""

    scheduled: tuple[ScheduledSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)

    @property
    def size(self) -> StepSize:
        return StepSize.total(s.size for s in self.scheduled)

    @property
    def sampled(self) -> list[ScheduledSequence]:
        """The entries for which the step samples tokens, in batch order."""
        return [s for s in self.scheduled if s.is_sampled]
