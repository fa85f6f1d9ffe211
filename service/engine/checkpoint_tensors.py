"""The tensors of a checkpoint by name, and the detection of those of quantizers and adapters."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from service.errors import ModelLoadError

# Last parts of the names of tensors that only quantizers and adapters write.
_FOREIGN = re.compile(
    r"""(^|[._])(
        \w*scales?(_\w+)? | scb | weight_format | \w*zero_?points? | \w*zeros | \w*amax
        | qweight\w* | weight_packed | packed_weight | weight_shape | \w*g_idx | q_perm | perm
        | \w*blocks | \w*codes | \w*codebooks? | codebook_\w+ | absmax | \w*quant_(map|state)\w*
        | nested_\w+ | bitmask | compressed | row_offsets | w_q | qdata | \w*qidxs | s[uv]
        | trellis | suh | svh | \w*meta(data)? | \w*hadamard\w* | \w*rotation\w*
        | bitsandbytes__\w+ | lora_\w+ | base_layer | original\d*
    )(\.default)?(\.weight)?$""",
    re.VERBOSE | re.IGNORECASE,
)


def open_tensors(path: Path) -> dict[str, Any]:
    """Open every tensor of the checkpoint in the directory `path`.

    The files are model.safetensors if it exists, else those of the index, else all shards, as in
    transformers. Copies in Mistral's own format are ignored.

    Returns:
        The open safetensors file of each tensor, by the tensor's name.

    Raises:
        ModelLoadError: A file is missing, cannot be read, or is not a safetensors file.
    """
    tensors: dict[str, Any] = {}
    for file in _weight_files(path):
        try:
            with file.open("rb"):  # safe_open reports any file system error as a missing file
                pass
            opened: Any = safe_open(file, framework="pt")
            tensors |= dict.fromkeys(opened.keys(), opened)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ModelLoadError(f"{file} cannot be read: {reason}") from error
        except SafetensorError as error:
            raise ModelLoadError(f"{file} cannot be loaded: {error}") from error
    return tensors


def _weight_files(path: Path) -> list[Path]:
    whole = path / "model.safetensors"
    if whole.is_file() or whole.is_symlink():
        return [whole]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
            return sorted(path / name for name in names)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelLoadError(f"{index} is not an index of safetensors files.") from error
        except OSError as error:
            raise ModelLoadError(f"{index} cannot be read: {error.strerror}") from error
    return sorted(
        file for file in path.glob("*.safetensors") if not file.name.startswith("consolidated")
    )


def reject_foreign(path: Path, unread: Iterable[str]) -> None:
    """Check that no unused tensor of a checkpoint is one of a quantizer or an adapter.

    Args:
        path: The checkpoint's directory, for the message.
        unread: Names of tensors that the model does not use.

    Raises:
        ModelLoadError: There is such a tensor. The weights would be wrong without it.
    """
    foreign = sorted(name for name in unread if _FOREIGN.search(name))
    if foreign:
        raise ModelLoadError(
            f"The model at {path} has {foreign[0]}, one of {len(foreign)} tensors of a "
            "quantization or an adapter that is not supported."
        )


def unusable_weight(path: Path, name: str, dtype: str) -> ModelLoadError:
    """Return the error for a weight that has no scale and cannot be used without one."""
    return ModelLoadError(
        f"The model at {path} cannot be loaded: {name} is stored as {dtype}, without a supported "
        "scale."
    )
