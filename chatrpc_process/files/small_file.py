"""Reads small files within limits, since they may have been replaced by anything."""

import stat
from pathlib import Path

from chatrpc_process.errors import ConfigError

# Enough for thousands of keys or a long chain of certificates, and parsed within a second.
MAX_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        ConfigError: The file cannot be read, is not a regular file or has more than MAX_BYTES.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait
            raise ConfigError(f"{path}: this is not a regular file.")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path}: this is not a valid file name.") from None
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{path}: the file has more than {MAX_BYTES} bytes.")
    return content
