"""The packing of a batch's tokens into the rows of one step."""

from dataclasses import dataclass
from itertools import chain

from service.engine.batch import Batch, ScheduledSequence


@dataclass(frozen=True, slots=True)
class SequenceRows:
    """Rows [start, end) of a step, which are consecutive tokens of one sequence.

    `context_len` is the number of the sequence's tokens up to and including the last row.
    """

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

    def block_ids(self, block_size: int) -> list[int]:
        """Return the ids of the blocks that contain the sequence's context."""
        return self.scheduled.sequence.block_ids[: -(-self.context_len // block_size)]

    @property
    def prompt_logprob_positions(self) -> range:
        """The positions of these rows whose next prompt token needs a log probability."""
        wanted = self.scheduled.sequence.positions_without_logprobs
        return range(max(self.positions.start, wanted.start), min(self.positions.stop, wanted.stop))


@dataclass(frozen=True, slots=True)
class Layout:
    """The tokens of a step, packed sequence after sequence in batch order, without padding."""

    sequences: tuple[SequenceRows, ...]

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        """Return the layout of a batch."""
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
        """Number of sequences with a single row. They come first."""
        return sum(s.num_rows == 1 for s in self.sequences)

    def token_ids(self) -> list[int]:
        """Return the token id of each row."""
        return list(chain.from_iterable(s.scheduled.token_ids for s in self.sequences))

    def positions(self) -> list[int]:
        """Return the position of each row's token in its sequence."""
        return list(chain.from_iterable(s.positions for s in self.sequences))

    def slots(self, block_size: int) -> list[int]:
        """Return the cache slot of each row: block * block_size + offset."""
        return [
            s.scheduled.sequence.block_ids[position // block_size] * block_size
            + position % block_size
            for s in self.sequences
            for position in s.positions
        ]

    def sampled_rows(self) -> list[int]:
        """Return the rows after which tokens are sampled: for each sequence of `Batch.sampled`, the
        row of its last token and those of its draft."""
        return [
            row
            for s in self.sequences
            if s.scheduled.is_sampled
            for row in range(s.end - 1 - len(s.scheduled.draft_token_ids), s.end)
        ]

    def prompt_logprob_rows(self) -> list[int]:
        """Return the rows from which log probabilities of prompts are computed."""
        return [
            s.start + position - s.positions.start
            for s in self.sequences
            for position in s.prompt_logprob_positions
        ]

    def prompt_logprob_targets(self) -> list[tuple[int, int]]:
        """Return a pair for each of `prompt_logprob_rows`: the id of the next token, and the number
        of most likely tokens to report."""
        return [
            (sequence.token_ids[position + 1], sequence.request.num_prompt_logprobs or 0)
            for s in self.sequences
            for sequence in [s.scheduled.sequence]
            for position in s.prompt_logprob_positions
        ]
