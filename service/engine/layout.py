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


@dataclass(frozen=True, slots=True)
class Layout:
    """A step's tokens, packed sequence after sequence: no padding, any mix of decodes and chunks.

    Sequences with a single row come first.
    """

    sequences: tuple[SequenceRows, ...]

    @classmethod
    def of(cls, batch: Batch) -> "Layout":
        sequences = []
        row = 0
        for scheduled in sorted(batch.scheduled, key=lambda s: s.num_rows > 1):
            end = row + scheduled.num_rows
            context_len = scheduled.sequence.num_computed_tokens + scheduled.num_rows
            sequences.append(SequenceRows(scheduled, row, end, context_len))
            row = end
        return cls(tuple(sequences))

    @property
    def num_rows(self) -> int:
        return self.sequences[-1].end

    @property
    def num_decodes(self) -> int:
        """How many sequences have a single row."""
        return sum(s.num_rows == 1 for s in self.sequences)

    def token_ids(self) -> list[int]:
        return list(chain.from_iterable(map(_token_ids, self.sequences)))

    def positions(self) -> list[int]:
        """The position of each row's token in its sequence."""
        return list(chain.from_iterable(map(_positions, self.sequences)))

    def slots(self, block_size: int) -> list[int]:
        """Where each row's key and value go: block * block_size + offset."""
        return [
            s.scheduled.sequence.block_ids[position // block_size] * block_size
            + position % block_size
            for s in self.sequences
            for position in _positions(s)
        ]

    def block_ids(self, block_size: int) -> Iterator[list[int]]:
        """The blocks that hold each sequence's context."""
        for s in self.sequences:
            yield s.scheduled.sequence.block_ids[: -(-s.context_len // block_size)]

    def sampled_rows(self) -> list[tuple[ScheduledSequence, range]]:
        """Each sequence that gets tokens from this step, and the rows that they are sampled after:
        that of its last token and those of the drafts behind it."""
        return [
            (s.scheduled, range(s.end - 1 - len(s.scheduled.draft_token_ids), s.end))
            for s in self.sequences
            if s.scheduled.is_sampled
        ]


def _token_ids(rows: SequenceRows) -> list[int]:
    sequence, drafts = rows.scheduled.sequence, rows.scheduled.draft_token_ids
    start = sequence.num_computed_tokens
    return [*sequence.token_ids[start : rows.context_len - len(drafts)], *drafts]


def _positions(rows: SequenceRows) -> range:
    return range(rows.context_len - rows.num_rows, rows.context_len)
