"""Reads the JSON files of a checkpoint."""

import json
from pathlib import Path
from typing import Any

from service.errors import ModelLoadError


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is no such file.

    Raises:
        ModelLoadError: The file cannot be read, or it is not a JSON object.
    """
    content = _read(path, {})
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path} is not a JSON object.")
    return content


def read_json_array(path: Path) -> list[Any]:
    """Return the JSON array in a file; an empty one if there is no such file.

    Raises:
        ModelLoadError: The file cannot be read, or it is not a JSON array.
    """
    content = _read(path, [])
    if not isinstance(content, list):
        raise ModelLoadError(f"{path} is not a JSON array.")
    return content


def _read(path: Path, absent: Any) -> Any:
    if not path.is_file():
        return absent
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelLoadError(f"{path} is not valid JSON: {error}") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
