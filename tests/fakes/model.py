"""A model that is a table: its logits depend on the last two tokens of the context."""

import torch
from torch import Tensor

from service.engine.layout import Layout, SequenceRows
from tests.fakes.runner import WrongCacheError
from tests.support.device import TORCH_DEVICE

VOCAB_SIZE = 14

_generator = torch.Generator().manual_seed(7)
# All logits are multiples of 0.5, so many are equal, and sums with multiples of 0.5 are exact.
_TABLE = torch.randint(-8, 9, (VOCAB_SIZE + 1, VOCAB_SIZE, VOCAB_SIZE), generator=_generator) / 2.0


def logits_after(token_ids: list[int]) -> Tensor:
    """Return the logits [VOCAB_SIZE] after these tokens."""
    before = token_ids[-2] if len(token_ids) > 1 else VOCAB_SIZE
    return _TABLE[before, token_ids[-1]].clone()


class FakeModel:
    """`service.engine.model_runner.Model` with a cache of tokens instead of keys and values.

    It reads the whole context of each row from its cache through the block table. It raises
    WrongCacheError if a slot has not the right token and position. The steps whose numbers are in
    `failing_steps` overwrite their slots and fail.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._table = _TABLE.to(TORCH_DEVICE)
        self._cache: dict[tuple[int, int], tuple[int, int]] = {}  # position and token, by slot
        self.failing_steps: set[int] = set()
        self.num_steps = 0
        self.most_rows = 0  # maximum number of rows of logits in one step

    def block_tensors(self) -> list[Tensor]:
        return []  # no test copies its blocks

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        self.num_steps += 1
        is_failing = self.num_steps in self.failing_steps
        for s in layout.sequences:
            for position, token_id in zip(s.positions, s.scheduled.token_ids, strict=True):
                slot = self._slot(s, position)
                self._cache[slot] = (-1, -1) if is_failing else (position, token_id)
        if is_failing:
            raise RuntimeError(f"step {self.num_steps} fails")
        last_two: list[list[int]] = []
        for s in layout.sequences:
            context = self._read(s)
            last_two += [[VOCAB_SIZE, *context[: p + 1]][-2:] for p in s.positions]
        chosen = [last_two[row] for row in rows]
        return torch.tensor(chosen, dtype=torch.long, device=TORCH_DEVICE).reshape(-1, 2)

    def logits(self, hidden: Tensor) -> Tensor:
        self.most_rows = max(self.most_rows, len(hidden))
        return self._table[hidden[:, 0], hidden[:, 1]]

    def _read(self, s: SequenceRows) -> list[int]:
        sequence = s.scheduled.sequence
        token_ids = sequence.token_ids[: sequence.num_computed_tokens] + s.scheduled.token_ids
        read = [self._cache.get(self._slot(s, i)) for i in range(len(token_ids))]
        if read != list(enumerate(token_ids)):
            raise WrongCacheError(f"{read} is not {token_ids}")
        return token_ids

    def _slot(self, s: SequenceRows, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self._block_size)
        return s.scheduled.sequence.block_ids[block], offset
