"""Reads small files with limits: a path may have become a pipe or a huge file."""

import stat
from pathlib import Path

from chatrpc_process.errors import ConfigError

# Maximum size of a file. It is enough for thousands of keys or a long chain of certificates, and
# parsing it takes less than a second.
MAX_BYTES = 1 << 20


def read_small(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        ConfigError: The file cannot be read, is not a regular file or has more than MAX_BYTES.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe could block
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
