"""A model's config with all its defaults filled in: transformers is asked once, then remembered.

A config.json leaves out what its model's class in transformers has a default for. Asking takes 4 s
of imports, more than all the rest of a start.
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

_FORMAT = b"2"  # raise it when the same config.json should give other fields


def read_config(path: Path, cache_dir: Path) -> Any:
    """The config of the model in `path`; of one of several parts, of the part for text.

    It has the attributes of transformers' config, and `rope_frequencies`: by the kind of layer,
    "" for all, the inverse frequencies of a scaled rotary embedding and the scale of its angles'
    cosines and sines. `whole_model_type` is the type of the model of several parts, else its own.

    Raises:
        Exception: whatever a file may hold, transformers has a different error for.
    """
    content = (path / "config.json").read_bytes() + version("transformers").encode() + _FORMAT
    entry = cache_dir / "configs" / f"{hashlib.sha256(content).hexdigest()}.json"
    with suppress(OSError, ValueError):
        return SimpleNamespace(**json.loads(entry.read_bytes()))
    from service.engine.transformers_config import describe  # noqa: PLC0415  # see above

    fields = describe(path)
    with suppress(OSError):  # a cache that was filled beforehand may be read-only
        _write(entry, json.dumps(fields, default=str))
    return SimpleNamespace(**fields)


def _write(entry: Path, text: str) -> None:
    """Write the file at once or not at all: another process may be reading it."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=entry.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
        os.fchmod(handle, 0o644)  # an image's cache is written by root and read by somebody else
    Path(temporary).rename(entry)
