"""A model that is a table: its logits depend on the last two tokens of the context."""

import torch
from torch import Tensor

from service.engine.layout import Layout, SequenceRows
from tests.fakes.runner import WrongCacheError

VOCAB_SIZE = 14

_generator = torch.Generator().manual_seed(7)
# Halves, so that many are equal and sums with other halves are exact.
_TABLE = torch.randint(-8, 9, (VOCAB_SIZE + 1, VOCAB_SIZE, VOCAB_SIZE), generator=_generator) / 2.0


def logits_after(token_ids: list[int]) -> Tensor:
    """[VOCAB_SIZE], behind these tokens."""
    before = token_ids[-2] if len(token_ids) > 1 else VOCAB_SIZE
    return _TABLE[before, token_ids[-1]].clone()


class FakeModel:
    """`service.engine.model_runner.Model`.

    It reads the whole context of each row back from its cache through the block table, and each
    place must hold the right token at the right position. In the steps whose numbers are in
    `failing_steps` it fails when it has written rubbish.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # position and token, by place
        self.failing_steps: set[int] = set()
        self.num_steps = 0
        self.most_rows = 0  # of logits, at once

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        self.num_steps += 1
        is_failing = self.num_steps in self.failing_steps
        for s in layout.sequences:
            for position, token_id in zip(s.positions, s.scheduled.token_ids, strict=True):
                place = self._place(s, position)
                self._cache[place] = (-1, -1) if is_failing else (position, token_id)
        if is_failing:
            raise RuntimeError(f"step {self.num_steps} fails")
        last_two: list[list[int]] = []
        for s in layout.sequences:
            context = self._read(s)
            last_two += [[VOCAB_SIZE, *context[: p + 1]][-2:] for p in s.positions]
        return torch.tensor([last_two[row] for row in rows], dtype=torch.long).reshape(-1, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        self.most_rows = max(self.most_rows, len(hidden))
        return _TABLE[hidden[:, 0], hidden[:, 1]]

    def _read(self, s: SequenceRows) -> list[int]:
        sequence = s.scheduled.sequence
        token_ids = sequence.token_ids[: sequence.num_computed_tokens] + s.scheduled.token_ids
        read = [self._cache.get(self._place(s, i)) for i in range(len(token_ids))]
        if read != list(enumerate(token_ids)):
            raise WrongCacheError(f"{read} is not {token_ids}")
        return token_ids

    def _place(self, s: SequenceRows, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return s.scheduled.sequence.block_ids[block], offset
