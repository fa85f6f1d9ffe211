"""Adds a key to a file that services and gateways may read at any time."""

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
    """Add an entry to the file, which is created if it does not exist.

    The file is replaced atomically. It keeps its mode and owner. A symbolic link stays one.

    Args:
        entry: A table `[[key]]` in TOML.

    Raises:
        ConfigError: The file is invalid, or the entry would make it invalid. The file is unchanged.
        OSError: The file cannot be written. The file is unchanged.
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
        # Each part by itself is valid TOML. Together they are not if the existing keys are in an
        # array.
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
    """Set the mode and the owner of a file to those of `path`, or to those of a new file."""
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
    """Lock a directory while in the context, so that two processes cannot lose each other's key."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
