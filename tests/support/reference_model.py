"""A causal language model by the transformers library, in float32 and without a cache."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

# Number of texts whose logits are kept: the sequences of a request begin with the same text.
_NUM_CACHED = 8
_AutoModel: Any = AutoModelForCausalLM  # transformers has no types for it


class ReferenceModel:
    """Computes the logits of a checkpoint.

    Raises:
        Exception: The library cannot load the checkpoint. The type of the exception varies.
    """

    def __init__(self, path: Path) -> None:
        self._model = _AutoModel.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
        self._cached_logits = lru_cache(_NUM_CACHED)(self._logits)
        self.max_model_len: int = self._model.config.max_position_embeddings
        self.vocab_size: int = self._model.config.vocab_size

    def logits(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Return the logits after each token, [len(token_ids), vocab_size].

        The caller must not change them.
        """
        return self._cached_logits(tuple(token_ids))

    @torch.inference_mode()
    def _logits(self, token_ids: tuple[int, ...]) -> list[list[float]]:
        rows: list[list[float]] = self._model(torch.tensor([token_ids])).logits[0].tolist()
        return rows
