"""The tensors of a checkpoint in safetensors files, each read when it is asked for."""

from pathlib import Path
from types import TracebackType
from typing import Self

import structlog
import torch

from service.engine.checkpoint_tensors import reject_foreign
from service.engine.quantized_checkpoint import QuantizedWeights
from service.engine.stored_weights import StoredWeights
from service.errors import ModelLoadError

log = structlog.get_logger(__name__)

# How the same language model is named in a multimodal checkpoint: what its names begin with, and
# what they begin with in a checkpoint of its own. The first that fits counts.
_LANGUAGE_MODELS = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
}
# What checkpoints hold beside their weights that is computed here.
_COMPUTED = ("rotary_emb.inv_freq", "masked_bias")


class Weights:
    """All tensors of a directory's checkpoint as one mapping from names; a context manager.

    Quantized weights are dequantized one by one. The names are those of a language model by itself,
    also where the checkpoint is multimodal.

    Args:
        dtype: what the tensors are converted to.
        device: where they are put.
        quantization: how the weights are stored that are not of a floating-point type of 16 bits or
            more; None: there are none.

    Raises:
        ModelLoadError: a file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        device: torch.device,
        quantization: QuantizedWeights | None = None,
    ) -> None:
        self._path = path
        self._dtype = dtype
        self._stored = StoredWeights(path, device, quantization)
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
        """The tensor of that name.

        Raises:
            ModelLoadError: there is none, or it is quantized in a way that is not served.
        """
        if name not in self._stored_names:
            reject_foreign(self._path, self._unread)
            raise ModelLoadError(f"The model at {self._path} is not complete: it has no {name}.")
        self._unread.discard(name)
        return self._stored.read(self._stored_names[name]).to(self._dtype)

    def shaped(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name and of that shape.

        Raises:
            ModelLoadError: there is none, it has another shape, or it is quantized in a way that is
                not served.
        """
        tensor = self[name]
        if tensor.shape != shape:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} has the shape "
                f"{list(tensor.shape)} where its config makes it {list(shape)}."
            )
        return tensor

    def check_unread(self) -> None:
        """Check the tensors that nobody asked for; call it when the model is complete.

        Raises:
            ModelLoadError: one of them belongs to a quantization or an adapter: the model computes
                something else without it.
        """
        unread = {name for name in self._unread if not name.endswith(_COMPUTED)}
        reject_foreign(self._path, unread)
        if unread:
            log.warning("checkpoint_tensors_not_used", first=min(unread), count=len(unread))


def _own_name(name: str) -> str | None:
    """A tensor's name in a language model by itself; None for one of another part."""
    for prefix, own in _LANGUAGE_MODELS.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else None
