"""Adding a key to a file that services and gateways may read at any moment."""

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chatrpc_process.access.keys import parse_keys
from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import MAX_BYTES, read_small

_NO_KEYS = re.compile(r"^[ \t]*key[ \t]*=[ \t]*\[\s*\][ \t]*(#.*)?$\n?", re.MULTILINE)


def add_key(path: Path, entry: str) -> None:
    """Add an entry to the file, which is made if it does not exist.

    The file is replaced as a whole, so that nobody reads half of it. It keeps its mode and owner. A
    symbolic link stays one.

    Args:
        entry: A table `[[key]]` in TOML.

    Raises:
        ConfigError: The file is invalid, or would be with the entry. It stays as it is.
        OSError: It cannot be written. It stays as it is.
    """
    path = path.resolve()
    with _locked(path.parent):
        before = read_small(path) if path.exists() else b""
        _replace(path, _added(path, before, entry))


def _added(path: Path, before: bytes, entry: str) -> bytes:
    if before.strip() and (problems := parse_keys(before).problems):
        raise ConfigError(f"{path}: {problems[0]}")
    text = _NO_KEYS.sub("", before.decode()).rstrip()
    after = (f"{text}\n\n{entry}" if text else entry).encode()
    if len(after) > MAX_BYTES:
        raise ConfigError(f"{path}: it would have more than {MAX_BYTES} bytes")
    if problems := parse_keys(after).problems:
        # Both parts are valid TOML; together they are not if the keys so far are in an array.
        is_array = "not valid TOML" in problems[0]
        reason = "write each key as a table [[key]], not in an array" if is_array else problems[0]
        raise ConfigError(f"{path}: {reason}")
    return after


def _replace(path: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            _copy_access(path, file.fileno())
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _copy_access(path: Path, handle: int) -> None:
    """Give a file the mode and the owner of the one at `path`, or those of any new file."""
    try:
        old = path.stat()
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(handle, 0o666 & ~mask)
        return
    os.fchmod(handle, old.st_mode & 0o777)
    new = os.fstat(handle)
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        os.fchown(handle, old.st_uid, old.st_gid)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let only one process at a time add keys, or one of two keys would be lost."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
