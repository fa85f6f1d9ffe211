"""A model's config with all defaults of transformers, computed once and cached in a file.

A config.json omits fields that have a default in transformers. Importing transformers takes 4 s,
more than the rest of a start.
"""

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_FORMAT = b"2"  # increase it if the fields for the same config.json change


def read_config(path: Path, cache_dir: Path) -> Any:
    """Return the config of the model in `path`; of a multimodal model, that of its language model.

    Args:
        path: The checkpoint's directory.
        cache_dir: The directory that contains the cache.

    Returns:
        An object with the attributes of transformers' config and two more. `rope_frequencies` maps
        the kind of layer ("" for all) to the inverse frequencies of a scaled rotary embedding and
        the scale of its cosines and sines. `whole_model_type` is the type of the whole model.

    Raises:
        Exception: The file cannot be read or used; transformers raises many kinds of errors.
    """
    content = (path / "config.json").read_bytes() + version("transformers").encode() + _FORMAT
    entry = cache_dir / "configs" / f"{hashlib.sha256(content).hexdigest()}.json"
    with suppress(OSError, ValueError):
        return SimpleNamespace(**json.loads(entry.read_bytes()))
    from service.engine.transformers_config import describe  # noqa: PLC0415  # see above

    fields = describe(path)
    with suppress(OSError):  # the cache may be read-only
        _write(entry, json.dumps(fields, default=str))
    return SimpleNamespace(**fields)


def _write(entry: Path, text: str) -> None:
    """Write the file atomically, because another process may read it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=entry.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(handle, 0o644)  # an image's cache is written by root, read by another user
    Path(temporary).rename(entry)
