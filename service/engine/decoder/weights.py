"""The tensors of a checkpoint in safetensors files, each read when it is asked for."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog
import torch

from service.engine.checkpoint_tensors import open_tensors, reject_foreign, unusable_weight
from service.engine.decoder.dequantize import dequantize
from service.engine.quantized_checkpoint import QuantizedWeights
from service.errors import ModelLoadError

log = structlog.get_logger(__name__)

_FLOAT8 = {
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
}
# How the same language model is named in a multimodal checkpoint: what its names begin with, and
# what they begin with in a checkpoint of its own. The first that fits counts.
_LANGUAGE_MODELS = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
}
# Of a quantized layer: what activations were quantized with. They are not quantized here.
_ACTIVATION_SCALES = (
    "input_scale",
    "input_zero_point",
    "input_scale_ub",
    "activation_scale",
    "activation_scale_ub",
    "output_scale",
)
# Of a layer's attention: what its keys and values were quantized with. The cache is not quantized.
_CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".prob_output_scale", ".kv_scale")
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
        self._device = device
        self._quantization = quantization
        self._unread: set[str] = set()
        self._tensors: dict[str, tuple[Any, str]] = {}
        opened = open_tensors(path)
        is_multimodal = any(name.startswith(tuple(_LANGUAGE_MODELS)) for name in opened)
        for stored_name, file in opened.items():
            name = _own_name(stored_name) if is_multimodal else stored_name
            if name is not None:
                self._tensors[name] = (file, stored_name)
        self._unread.update(self._tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._tensors.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name.

        Raises:
            ModelLoadError: there is none, or it is quantized in a way that is not served.
        """
        if name not in self._tensors:
            reject_foreign(self._path, self._unread)
            raise ModelLoadError(f"The model at {self._path} is not complete: it has no {name}.")
        tensor = self._read(name)
        if not tensor.is_floating_point() or tensor.dtype in _FLOAT8:
            tensor = self._dequantized(name, tensor)
        return tensor.to(self._device, self._dtype)

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
        if self._quantization is not None and self._quantization.has_quantized_cache:
            unread = {name for name in unread if not name.endswith(_CACHE_SCALES)}
        reject_foreign(self._path, unread)
        if unread:
            log.warning("checkpoint_tensors_not_used", first=min(unread), count=len(unread))

    def _read(self, name: str) -> torch.Tensor:
        file, stored_name = self._tensors[name]
        self._unread.discard(name)
        tensor: torch.Tensor = file.get_tensor(stored_name)
        return tensor.to(self._device)

    def _dequantized(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """`stored`, the content of a layer's weight, with its layer's scale; float32."""
        scheme = self._quantization
        layer, _, part = name.rpartition(".")
        dtype = "float8" if stored.dtype in _FLOAT8 else str(stored.dtype).removeprefix("torch.")
        scale = self._first(layer, scheme.scale_names) if scheme is not None else None
        if scheme is None or scale is None or part != "weight" or dtype != scheme.dtype:
            raise unusable_weight(self._path, name, dtype)
        if not scale.is_floating_point() or stored.dim() != 2:
            raise unusable_weight(self._path, name, dtype)
        self._unread.difference_update(f"{layer}.{other}" for other in _ACTIVATION_SCALES)
        order = self._first(layer, ("weight_format",))  # of bitsandbytes; 0 is row by row
        if order is not None and order.item() != 0:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} is stored in the order of a "
                f"kind of GPU, {layer}.weight_format {order.item()}, which is not served."
            )
        zero_point = self._first(layer, ("weight_zero_point",)) if dtype == "int8" else None
        try:
            return dequantize(stored, scale.float() / scheme.divisor, zero_point, scheme.block)
        except ValueError as error:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: the scale of {name}: {error}."
            ) from error

    def _first(self, layer: str, parts: tuple[str, ...]) -> torch.Tensor | None:
        """The first tensor of a layer that exists, of several names; None if none does."""
        names = (f"{layer}.{part}" for part in parts)
        return next((self._read(name) for name in names if name in self._tensors), None)


def _own_name(name: str) -> str | None:
    """A tensor's name in a language model by itself; None for one of another part."""
    for prefix, own in _LANGUAGE_MODELS.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name if name.startswith("lm_head.") else None
