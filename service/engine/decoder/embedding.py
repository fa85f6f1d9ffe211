"""The embedding of tokens: a table of floats, or of integers in groups as a file stores it."""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.weight import IntegerWeight


class Embedding(Protocol):
    """A table with one row for each token."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the table."""
        ...

    def __call__(self, token_ids: Tensor) -> Tensor:
        """Return the rows [T, hidden_size] of the tokens [T]."""
        ...


class FloatEmbedding:
    """An `Embedding` of a float table [vocab_size, hidden_size]."""

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self.dtype = table.dtype
        self.device = table.device

    def __call__(self, token_ids: Tensor) -> Tensor:
        return F.embedding(token_ids, self._table)


class GroupedEmbedding:
    """An `Embedding` of a table in integers, of which only the rows of a step are dequantized."""

    def __init__(self, table: IntegerWeight) -> None:
        self._table = table
        self.dtype = torch.float32
        self.device = torch.device("cpu")

    def __call__(self, token_ids: Tensor) -> Tensor:
        return self._table.select(token_ids).dequantized()
