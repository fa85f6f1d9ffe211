"""A causal language model by the transformers library, in float32 and without a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

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
        self.max_model_len: int = self._model.config.max_position_embeddings
        self.vocab_size: int = self._model.config.vocab_size

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> list[list[float]]:
        """Return the logits after each token, [len(token_ids), vocab_size]."""
        rows: list[list[float]] = self._model(torch.tensor([token_ids])).logits[0].tolist()
        return rows
