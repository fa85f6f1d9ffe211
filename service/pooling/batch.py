"""The inputs of one step, packed without padding. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class TokenizedInput:
    """An input as token ids.

    Attributes:
        token_ids: The ids, with special tokens.
        type_ids: The number of the text that each token belongs to; empty if all belong to the
            first.
        num_skipped: Number of tokens at the start that pooling leaves out.
    """

    token_ids: Sequence[int]
    type_ids: Sequence[int] = ()
    num_skipped: int = 0

    def __len__(self) -> int:
        return len(self.token_ids)


class Group(NamedTuple):
    """Neighbouring inputs of equal length in a packed batch.

    Attributes:
        start: Index of the first token of the first input.
        size: Number of inputs.
        length: Number of tokens of each.
        num_skipped: `TokenizedInput.num_skipped` of each.
    """

    start: int
    size: int
    length: int
    num_skipped: int


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Inputs in ascending order of their lengths, one after another.

    Attributes:
        order: The index of each input in the sequence that was packed.
        inputs: The inputs in this order.
        groups: The inputs again, by lengths.
    """

    order: Sequence[int]
    inputs: Sequence[TokenizedInput]
    groups: Sequence[Group]

    def by_group(self) -> Iterator[tuple[Group, Sequence[TokenizedInput]]]:
        """Yield each group with its inputs."""
        first = 0
        for group in self.groups:
            yield group, self.inputs[first : first + group.size]
            first += group.size


def packed(inputs: Sequence[TokenizedInput]) -> PackedBatch:
    """Return the inputs as a batch."""
    order = sorted(range(len(inputs)), key=lambda i: (len(inputs[i]), inputs[i].num_skipped))
    ordered = [inputs[i] for i in order]
    groups: list[Group] = []
    start = 0
    for each in ordered:
        last = groups[-1] if groups else None
        if last is not None and last[2:] == (len(each), each.num_skipped):
            groups[-1] = last._replace(size=last.size + 1)
        else:
            groups.append(Group(start, 1, len(each), each.num_skipped))
        start += len(each)
    return PackedBatch(order, ordered, groups)
