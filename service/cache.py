"""Where the service keeps what it makes once: converted models, compiled kernels."""

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """As the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "chatrpc"
