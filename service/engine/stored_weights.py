"""Reads the weights of a checkpoint one by one, and dequantizes them with their scales."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch

from service.engine.checkpoint_tensors import open_tensors, unusable_weight
from service.engine.dequantize import dequantize
from service.engine.gguf_weights import GgufWeights
from service.engine.grouped_weight import GroupedWeight
from service.engine.packed_weights import AUXILIARY, PACKED, PackedWeights, UnpackedWeight, unpack
from service.engine.quantized_checkpoint import (
    GgufTensors,
    QuantizedWeights,
    StoredQuantization,
)
from service.engine.weight import IntegerWeight
from service.errors import ModelLoadError

_FLOAT8 = {
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
}
# Scales of a quantized layer's activations. They are not used: if activations are quantized here,
# each row gets scales of its own.
_ACTIVATION_SCALES = (
    "input_scale",
    "input_zero_point",
    "input_scale_ub",
    "activation_scale",
    "activation_scale_ub",
    "output_scale",
)
# Scales of a quantized KV cache. They are not used: a cache in int8 has scales of its own here.
_CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".prob_output_scale", ".kv_scale")
_ORDER = "weight_format"  # bitsandbytes' name of the order; 0 is row-major
_ZERO_POINT = "weight_zero_point"


class StoredWeights(Protocol):
    """The tensors of a checkpoint. Each is read when it is needed."""

    @property
    def names(self) -> set[str]:
        """The names of all tensors, except those that only belong to another one, as scales do."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor: as it is stored, or in float32 if it is quantized.

        Args:
            name: One of `names`.

        Raises:
            ModelLoadError: The file is damaged, or the quantization is not supported.
        """
        ...

    def read_grouped(self, name: str) -> IntegerWeight | None:
        """Return a weight as it is stored, on the CPU; None if it is not integers in groups.

        Args:
            name: One of `names`.

        Raises:
            ModelLoadError: The file is damaged, or the quantization is not supported.
        """
        ...

    def close(self) -> None:
        """Close the files. No tensor can be read after that."""
        ...


def open_weights(
    path: Path, device: torch.device, quantization: StoredQuantization | None
) -> StoredWeights:
    """Open the weights of the checkpoint in the directory `path`.

    Args:
        device: The device of the tensors that `read` returns.
        quantization: How the weights are stored, from `read_quantized_weights`.

    Raises:
        ModelLoadError: A file cannot be read.
    """
    if isinstance(quantization, GgufTensors):
        return GgufWeights(path, quantization.tensors, device)
    if isinstance(quantization, PackedWeights):
        return PackedSafetensorsWeights(path, device, quantization)
    return SafetensorsWeights(path, device, quantization)


class SafetensorsWeights:
    """`StoredWeights` of the safetensors files in a directory.

    Args:
        path: The directory.
        device: The device of the tensors that `read` returns.
        quantization: How FP8 or integer weights are stored; None if there are none.

    Raises:
        ModelLoadError: A file cannot be read.
    """

    def __init__(
        self, path: Path, device: torch.device, quantization: QuantizedWeights | None
    ) -> None:
        self._path = path
        self._device = device
        self._quantization = quantization
        self._files = open_tensors(path)

    def close(self) -> None:
        """See `StoredWeights`."""
        self._files.clear()

    @property
    def names(self) -> set[str]:
        """See `StoredWeights`. The scales of a quantized KV cache are not among them either."""
        auxiliary = _cache_scales(self._files, self._quantization)
        for name in self._files:
            if self._is_quantized(name):
                auxiliary.update(self._auxiliary(name.removesuffix(".weight")))
        return self._files.keys() - auxiliary

    def read(self, name: str) -> torch.Tensor:
        """See `StoredWeights`."""
        tensor = self._stored(name)
        return tensor if _is_usable(tensor) else self._dequantized(name, tensor)

    def read_grouped(self, name: str) -> GroupedWeight | None:  # noqa: ARG002
        """See `StoredWeights`."""
        return None

    def _is_quantized(self, name: str) -> bool:
        """Return True if `name` is a weight that is stored in the quantized type."""
        scheme = self._quantization
        if scheme is None or not name.endswith(".weight"):
            return False
        dtype: str = self._files[name].get_slice(name).get_dtype()
        return dtype.startswith("F8" if scheme.dtype == "float8" else "I8")

    def _auxiliary(self, layer: str) -> list[str]:
        """Return the names of the tensors that belong to a quantized layer's weight."""
        if self._quantization is None:
            return []
        parts = [*_ACTIVATION_SCALES]
        if self._quantization.dtype == "int8":
            parts += [_ORDER, _ZERO_POINT]
        scale = self._scale_name(layer)
        return [f"{layer}.{part}" for part in parts] + ([scale] if scale else [])

    def _scale_name(self, layer: str) -> str | None:
        parts = self._quantization.scale_names if self._quantization is not None else ()
        return next((f"{layer}.{part}" for part in parts if f"{layer}.{part}" in self._files), None)

    def _stored(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor.to(self._device)

    def _optional(self, name: str) -> torch.Tensor | None:
        return self._stored(name) if name in self._files else None

    def _dequantized(self, name: str, stored: torch.Tensor) -> torch.Tensor:
        """Return a stored weight, dequantized to float32 with its layer's scale."""
        scheme, layer = self._quantization, name.removesuffix(".weight")
        scale_name = self._scale_name(layer)
        if scheme is None or scale_name is None or not self._is_quantized(name):
            raise _unusable(self._path, name, stored)
        scale = self._stored(scale_name)
        if not scale.is_floating_point() or stored.dim() != 2:
            raise _unusable(self._path, name, stored)
        is_int8 = scheme.dtype == "int8"
        order = self._optional(f"{layer}.{_ORDER}") if is_int8 else None
        if order is not None and order.item() != 0:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} is stored in an order for "
                f"GPUs ({layer}.{_ORDER} is {order.item()}), which is not supported."
            )
        zero_point = self._optional(f"{layer}.{_ZERO_POINT}") if is_int8 else None
        try:
            return dequantize(stored, scale.float() / scheme.divisor, zero_point, scheme.block)
        except ValueError as error:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: the scale of {name}: {error}."
            ) from error


class PackedSafetensorsWeights:
    """`StoredWeights` of safetensors files with weights packed in 32-bit integers.

    A packed weight has the name `*.weight`, as in a checkpoint without quantization.

    Args:
        path: The directory.
        device: The device of the tensors that `read` returns.
        storage: How the weights are packed.

    Raises:
        ModelLoadError: A file cannot be read.
    """

    def __init__(self, path: Path, device: torch.device, storage: PackedWeights) -> None:
        self._path = path
        self._device = device
        self._storage = storage
        self._files = open_tensors(path)
        end = f".{PACKED[storage.layout]}"
        layers = [name.removesuffix(end) for name in self._files if name.endswith(end)]
        self._layers = {f"{layer}.weight": layer for layer in layers}

    def close(self) -> None:
        """See `StoredWeights`."""
        self._files.clear()

    @property
    def names(self) -> set[str]:
        """See `StoredWeights`. The scales of a quantized KV cache are not among them either."""
        layout = self._storage.layout
        parts = (PACKED[layout], *AUXILIARY[layout], *_ACTIVATION_SCALES)
        others = {f"{layer}.{part}" for layer in self._layers.values() for part in parts}
        others |= _cache_scales(self._files, self._storage)
        return (self._files.keys() | self._layers.keys()) - others

    def read(self, name: str) -> torch.Tensor:
        """See `StoredWeights`."""
        if name in self._layers:
            return self._unpacked(name).dequantized().to(self._device)
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        if not _is_usable(tensor):
            raise _unusable(self._path, name, tensor)
        return tensor.to(self._device)

    def read_grouped(self, name: str) -> GroupedWeight | None:
        """See `StoredWeights`. Groups of inputs that are not adjacent (act-order) are not kept."""
        return self._unpacked(name).grouped(self._storage.bits) if name in self._layers else None

    def _unpacked(self, name: str) -> UnpackedWeight:
        layer, layout = self._layers[name], self._storage.layout
        names = {part: f"{layer}.{part}" for part in (PACKED[layout], *AUXILIARY[layout])}
        tensors = {
            part: self._files[full].get_tensor(full)
            for part, full in names.items()
            if full in self._files
        }
        try:
            return unpack(self._storage, tensors)
        except ValueError as error:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} is packed, and {error}."
            ) from error


def _cache_scales(
    names: Iterable[str], quantization: QuantizedWeights | PackedWeights | None
) -> set[str]:
    """Return the names that are scales of a quantized KV cache, if the checkpoint declares one."""
    if quantization is None or not quantization.has_quantized_cache:
        return set()
    return {name for name in names if name.endswith(_CACHE_SCALES)}


def _is_usable(tensor: torch.Tensor) -> bool:
    """Return True if a stored tensor has floating-point numbers that need no scale."""
    return tensor.is_floating_point() and tensor.dtype not in _FLOAT8


def _unusable(path: Path, name: str, tensor: torch.Tensor) -> ModelLoadError:
    return unusable_weight(path, name, str(tensor.dtype).removeprefix("torch."))
