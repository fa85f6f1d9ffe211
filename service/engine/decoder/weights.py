"""Reads the tensors of a checkpoint by the names of a language model."""

from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
import torch

from service.engine.checkpoint_tensors import reject_foreign
from service.engine.quantized_checkpoint import StoredQuantization
from service.engine.stored_weights import open_weights
from service.engine.weight import IntegerWeight, Weight
from service.errors import ModelLoadError

log = structlog.get_logger(__name__)

# Prefixes of a language model's tensors in multimodal checkpoints, and the prefixes of the same
# tensors in a checkpoint of the language model. The first match is used.
_LANGUAGE_MODELS = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
}
# Tensors in checkpoints that are computed here instead of being read.
_COMPUTED = ("rotary_emb.inv_freq", "masked_bias")


class Weights:
    """A mapping from names to the tensors of the checkpoint in a directory; a context manager.

    Tensors are read, dequantized and converted at each access. The names are those of a language
    model by itself, even if the checkpoint is multimodal.

    Args:
        path: The directory.
        dtype: The type that tensors are converted to.
        device: The device that tensors are moved to.
        quantization: How the weights are stored, from `read_quantized_weights`.
        keeps_groups: If True, `linear` and `grouped` return weights as they are stored.

    Raises:
        ModelLoadError: A file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: StoredQuantization | None = None,
        *,
        keeps_groups: bool = False,
    ) -> None:
        self._path = path
        self._dtype = dtype
        self._keeps_groups = keeps_groups
        self._stored = open_weights(path, device, quantization)
        names = self._stored.names
        is_multimodal = any(name.startswith(tuple(_LANGUAGE_MODELS)) for name in names)
        own = {_own_name(name) if is_multimodal else name: name for name in sorted(names)}
        self._stored_names = {name: stored for name, stored in own.items() if name is not None}
        self._unread = set(self._stored_names)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stored.close()

    def __contains__(self, name: str) -> bool:
        return name in self._stored_names

    def __getitem__(self, name: str) -> torch.Tensor:
        """Return the tensor `name`.

        Raises:
            ModelLoadError: There is no such tensor, or its quantization is not supported.
        """
        return self._stored.read(self._stored_name(name)).to(self._dtype)

    def shaped(self, name: str, *shape: int) -> torch.Tensor:
        """Return the tensor `name`, which must have the given shape.

        Raises:
            ModelLoadError: There is no such tensor, it has another shape, or its quantization is
                not supported.
        """
        tensor = self[name]
        self._check_shape(name, tensor.shape, shape)
        return tensor

    def grouped(self, name: str, out_features: int, in_features: int) -> IntegerWeight | None:
        """Return the weight `name` in its groups of integers.

        None if it is not stored in groups, or groups are not kept.

        Raises:
            ModelLoadError: See `shaped`.
        """
        if not self._keeps_groups:
            return None
        weight = self._stored.read_grouped(self._stored_name(name))
        if weight is not None:
            self._check_shape(name, weight.shape, (out_features, in_features))
        return weight

    def linear(self, name: str, out_features: int, in_features: int) -> Weight:
        """Return the weight `name`: in its groups of integers if they are kept, else as floats.

        Raises:
            ModelLoadError: See `shaped`.
        """
        weight = self.grouped(name, out_features, in_features)
        return self.shaped(name, out_features, in_features) if weight is None else weight

    def _stored_name(self, name: str) -> str:
        """Return the name in the checkpoint's files, and mark the tensor as read."""
        if name not in self._stored_names:
            reject_foreign(self._path, self._unread)
            raise ModelLoadError(f"The model at {self._path} is not complete: it has no {name}.")
        self._unread.discard(name)
        return self._stored_names[name]

    def _check_shape(self, name: str, found: torch.Size, expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} has the shape "
                f"{list(found)} where its config makes it {list(expected)}."
            )

    def check_unread(self) -> None:
        """Check the tensors that were not read. Call it after all layers have been read.

        Raises:
            ModelLoadError: One of them belongs to a quantization or an adapter. The model would
                compute wrong results without it.
        """
        unread = {name for name in self._unread if not name.endswith(_COMPUTED)}
        reject_foreign(self._path, unread)
        if unread:
            log.warning("checkpoint_tensors_not_used", first=min(unread), count=len(unread))


def _own_name(name: str) -> str | None:
    """Return the name that a tensor has in a checkpoint of only the language model.

    None if the tensor belongs to another part of a multimodal model.
    """
    for prefix, own in _LANGUAGE_MODELS.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else None
