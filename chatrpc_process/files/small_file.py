"""Files that are read while others are served: they may be anything by now, and cost little."""

import stat
from pathlib import Path

from chatrpc_process.errors import ConfigError

# Thousands of keys, or a long chain of certificates. Parsed in a fraction of a second.
MAX_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """What is in the file.

    Raises:
        ConfigError: it cannot be read, is no file (a pipe would be waited for) or is too large.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: this is no file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: no file can be called that") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: it has more than {MAX_BYTES} bytes")
    return content
