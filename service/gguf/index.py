"""The index of a GGUF file: which of its tensors are those of a checkpoint, and their positions.

A checkpoint's directory has the index and a link to the GGUF file instead of weights in
safetensors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from service.errors import ModelLoadError

LINK = "weights.gguf"
_INDEX = "gguf_index.json"


@dataclass(frozen=True, slots=True)
class IndexedTensor:
    """A tensor of a checkpoint, in a GGUF file.

    Attributes:
        stored_name: The tensor's name in the file.
        type: The name of its type, such as `Q4_K`.
        shape: Its shape, [N, K] or [N].
        offset: Its position in the file, in bytes.
        num_bytes: Its size in the file.
        num_heads: If it is set, the rows of each of these heads are stored as adjacent rotated
            pairs. In the checkpoint they are two halves.
        addend: A number that was added to all values when the file was written.
    """

    stored_name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    num_heads: int | None = None
    addend: float = 0.0


def write_index(directory: Path, file: Path, tensors: dict[str, IndexedTensor]) -> None:
    """Write the index, and a link to the GGUF file `file`, into `directory`.

    Args:
        tensors: The checkpoint's tensors by name.

    Raises:
        OSError: A file cannot be written.
    """
    content = {name: asdict(tensor) for name, tensor in tensors.items()}
    (directory / _INDEX).write_text(json.dumps(content))
    (directory / LINK).symlink_to(file)


def read_index(directory: Path) -> dict[str, IndexedTensor] | None:
    """Return the tensors in the index of `directory`, by name; None if there is no index.

    Raises:
        ModelLoadError: It cannot be read.
    """
    file = directory / _INDEX
    try:
        content: dict[str, dict[str, Any]] = json.loads(file.read_bytes())
        return {
            name: IndexedTensor(**fields | {"shape": tuple(fields["shape"])})
            for name, fields in content.items()
        }
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelLoadError(f"{file} is not an index of a GGUF file.") from error
