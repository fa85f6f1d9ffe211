"""The tensors of a checkpoint in safetensors files, each read when it is asked for."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open

from service.errors import ModelLoadError


class Weights:
    """All `*.safetensors` of a directory as one mapping of names to tensors; a context manager.

    Args:
        dtype: what the tensors are converted to.
        device: where they are put.

    Raises:
        ModelLoadError: a file is no safetensors file.
    """

    def __init__(self, path: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._path = path
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}
        try:
            for file in sorted(path.glob("*.safetensors")):
                opened: Any = safe_open(file, framework="pt")
                self._files |= dict.fromkeys(opened.keys(), opened)
        except (SafetensorError, OSError) as error:
            raise ModelLoadError(f"The model at {path} cannot be loaded: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> torch.Tensor:
        """The tensor of that name.

        Raises:
            ModelLoadError: there is none.
        """
        if name not in self._files:
            raise ModelLoadError(f"The model at {self._path} is not complete: it has no {name}.")
        tensor: torch.Tensor = self._files[name].get_tensor(name)
        return tensor.to(self._device, self._dtype)

    def shaped(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name and of that shape.

        Raises:
            ModelLoadError: there is none, or it has another shape.
        """
        tensor = self[name]
        if tensor.shape != shape:
            raise ModelLoadError(
                f"The model at {self._path} cannot be loaded: {name} has the shape "
                f"{list(tensor.shape)} where its config makes it {list(shape)}."
            )
        return tensor
