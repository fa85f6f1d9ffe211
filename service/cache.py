"""The default directory for files that are made once: converted models, compiled kernels."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """Return the directory `chatrpc` in the cache directory of the XDG specification."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatrpc"
