"""How a batch's tokens lie packed in the rows of one step."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from service.engine.scheduler import Batch, ScheduledSequence


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [start, end) of a step: the last of one sequence's first `context_len` tokens."""

    scheduled: ScheduledSequence
    start: int
    end: int
    context_len: int

    @property
    def num_rows(self) -> int:
        return self.end - self.start

    @property
    def positions(self) -> range:
        return range(self.context_len - self.num_rows, self.context_len)

    @property
    def prompt_logprob_positions(self) -> range:
        """Those of its positions behind which the prompt's log probabilities are to be found."""
        wanted = self.scheduled.sequence.positions_without_logprobs
        return range(max(self.positions.start, wanted.start), min(self.positions.stop, wanted.stop))


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's tokens, packed sequence after sequence in the batch's order: no padding, any mix of
    decodes and chunks."""

    sequences: tuple[SequenceRows, ...]

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        sequences = []
        row = 0
        for scheduled in batch.scheduled:
            end = row + scheduled.num_tokens
            context_len = scheduled.sequence.num_computed_tokens + scheduled.num_tokens
            sequences.append(SequenceRows(scheduled, row, end, context_len))
            row = end
        return cls(tuple(sequences))

    @property
    def num_decodes(self) -> int:
        """How many sequences have a single row; they come first."""
        return sum(s.num_rows == 1 for s in self.sequences)

    def token_ids(self) -> list[int]:
        return list(chain.from_iterable(s.scheduled.token_ids for s in self.sequences))

    def positions(self) -> list[int]:
        """The position of each row's token in its sequence."""
        return list(chain.from_iterable(s.positions for s in self.sequences))

    def slots(self, block_size: int) -> list[int]:
        """Where each row's key and value go: block * block_size + offset."""
        return [
            s.scheduled.sequence.block_ids[position // block_size] * block_size
            + position % block_size
            for s in self.sequences
            for position in s.positions
        ]

    def block_ids(self, block_size: int) -> Iterator[list[int]]:
        """The blocks that hold each sequence's context."""
        for s in self.sequences:
            yield s.scheduled.sequence.block_ids[: -(-s.context_len // block_size)]

    def sampled_rows(self) -> list[int]:
        """The rows that tokens are sampled after: of each sequence of the batch's `sampled`, that
        of its last token and those of the draft behind it."""
        return [
            row
            for s in self.sequences
            if s.scheduled.is_sampled
            for row in range(s.end - 1 - len(s.scheduled.draft_token_ids), s.end)
        ]

    def prompt_logprob_rows(self) -> list[int]:
        """The rows that log probabilities of prompts are computed from, sequence after sequence."""
        return [
            s.start + position - s.positions.start
            for s in self.sequences
            for position in s.prompt_logprob_positions
        ]

    def prompt_logprob_targets(self) -> list[tuple[int, int]]:
        """For each of those rows the token behind it, and how many of the likeliest to tell."""
        return [
            (sequence.token_ids[position + 1], sequence.request.num_prompt_logprobs or 0)
            for s in self.sequences
            for sequence in [s.scheduled.sequence]
            for position in s.prompt_logprob_positions
        ]
