"""Blocks of the KV cache as files of a directory. No tensors, no policy of what is stored."""

import errno
import os
import re
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The name and the version of the format. A file is this, its key, the SHA-256 of its content, and
# the content.
_MAGIC = b"chatrpc-kv-1\n"
_HASH_BYTES = 32
_HEADER_BYTES = len(_MAGIC) + 2 * _HASH_BYTES

# Only files with such names are ever read or removed.
_BLOCK_NAME = re.compile(r"[0-9a-f]{64}\.kv")
_UNFINISHED_NAME = re.compile(r"[0-9a-f]{16}\.tmp")

# A file that is not finished after this time was left by a process that was killed.
_MAX_WRITE_NS = 600 * 10**9
# When the directory is full, this share of it is freed, so that it is not read for each block. The
# directory is also read again each time when as much has been written.
_FREED_SHARE = 1 / 16


class DamagedBlock(Exception):
    """A file is not a block in this format, or has another key or length. It has been removed."""


class BlockFiles:
    """Blocks in the files of a directory, at most `max_bytes` of them.

    If there are more, the least recently used ones are removed. The time of a file's last use is
    its modification time.

    Processes may share a directory. A file appears under its name when it is complete. A power
    failure may leave a file with wrong content, and the hash in the file shows that. Each process
    counts the bytes of the others only when it reads the directory again. So every process beyond
    the first may exceed `max_bytes` by 1/16 of it.

    Methods may be called from several threads. `in` takes no lock.

    Args:
        directory: A subdirectory `blocks` of it has the files, so that its permissions do not
            matter.
        clock_ns: The time in nanoseconds since the epoch.

    Attributes:
        num_evictions: Number of blocks that were removed because the directory was full.
    """

    def __init__(
        self, directory: Path, max_bytes: int, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._directory = directory / "blocks"
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._files: dict[str, tuple[int, int]] = {}  # time of the last use and size, by name
        self._num_bytes = 0
        self._num_new_bytes = 0  # bytes that were written since the directory was read
        self._read_at = -1  # modification time of the directory when it was read
        self.num_evictions = 0

    def open(self) -> None:
        """Create the directory if it does not exist, and read the names of its files.

        Only this user can read the files: prompts can be reconstructed from keys and values.

        Raises:
            OSError: The directory cannot be created or read, or belongs to another user.
        """
        if not self._directory.is_dir():
            self._directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._directory.mkdir(mode=0o700, exist_ok=True)
        status = self._directory.lstat()
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{self._directory} belongs to another user")
        # Kubernetes may widen the permissions of a volume's directories when it is mounted.
        if status.st_mode & 0o077:
            self._directory.chmod(0o700)
        self.refresh()

    def __contains__(self, key: bytes) -> bool:
        """Return True if there is a block with this key, as of the last read of the directory."""
        return _name(key) in self._files

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, as of the last read of the directory."""
        return self._num_bytes

    def seconds_since_use(self, key: bytes) -> float | None:
        """Return the time since the last use of a block, in seconds; None if there is no block.

        Uses by other processes since the last read of the directory are not counted.
        """
        found = self._files.get(_name(key))
        return None if found is None else (self._clock_ns() - found[0]) / 1e9

    def read(self, key: bytes, num_bytes: int, used_ns: int) -> NDArray[np.uint8] | None:
        """Return the content of a block, and note its use.

        Args:
            key: 32 bytes.
            num_bytes: The size of a block.
            used_ns: The time of its use in nanoseconds since the epoch.

        Returns:
            [num_bytes], uint8; None if there is no block with this key.

        Raises:
            DamagedBlock: The file is not such a block. It has been removed.
            OSError: The file cannot be read.
        """
        name = _name(key)
        path = self._directory / name
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            self._forget(name)
            return None
        try:
            header, content = bytearray(_HEADER_BYTES), np.empty(num_bytes, dtype=np.uint8)
            has_length = os.fstat(descriptor).st_size == _HEADER_BYTES + num_bytes
            is_whole = has_length and _read_into(descriptor, header, content)
        finally:
            os.close(descriptor)
        if not is_whole or header != _header(key, content):
            self._remove(name)
            raise DamagedBlock(name)
        self.touch(key, used_ns)
        return content

    def touch(self, key: bytes, used_ns: int) -> None:
        """Note the use of a block, if there is one with this key.

        Args:
            used_ns: See `read`.
        """
        name = _name(key)
        with suppress(OSError):  # it was removed, or the file system is read-only
            os.utime(self._directory / name, ns=(used_ns, used_ns))
        with self._lock:
            if (found := self._files.get(name)) is not None:
                self._files[name] = (used_ns, found[1])

    def write(self, key: bytes, content: NDArray[np.uint8], used_ns: int) -> None:
        """Store a block, and remove others if there is no room for it.

        Args:
            key: 32 bytes.
            content: [num_bytes], uint8.
            used_ns: See `read`.

        Raises:
            OSError: It cannot be written. If the disk is full, blocks have been removed.
        """
        name, size = _name(key), _HEADER_BYTES + content.nbytes
        self._make_room(size)
        unfinished = self._directory / f"{secrets.token_hex(8)}.tmp"
        try:
            _write_file(unfinished, _header(key, content), content)
            unfinished.replace(self._directory / name)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._make_room(self._max_bytes - self._num_bytes + size)
            raise
        with self._lock:
            self._num_bytes += size - self._files.get(name, (0, 0))[1]
            self._num_new_bytes += size
            self._files[name] = (used_ns, size)
        self.touch(key, used_ns)

    def refresh(self) -> None:
        """Read the names of the files again, if the directory has changed.

        Raises:
            OSError: The directory cannot be read.
        """
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        changed_at = self._directory.stat().st_mtime_ns
        if changed_at == self._read_at:
            return
        found: dict[str, tuple[int, int]] = {}
        num_bytes = 0
        oldest_ns = self._clock_ns() - _MAX_WRITE_NS
        with os.scandir(self._directory) as entries:
            for entry in entries:
                is_block = _BLOCK_NAME.fullmatch(entry.name) is not None
                if not is_block and _UNFINISHED_NAME.fullmatch(entry.name) is None:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if is_block:
                    found[entry.name] = (status.st_mtime_ns, status.st_size)
                    num_bytes += status.st_size
                elif status.st_mtime_ns < oldest_ns:
                    with suppress(OSError):
                        Path(entry.path).unlink()
        self._files, self._num_bytes, self._num_new_bytes = found, num_bytes, 0
        self._read_at = changed_at

    def _make_room(self, size: int) -> None:
        """Remove the least recently used blocks, if `size` more bytes exceed the limit."""
        limit, freed = self._max_bytes, int(self._max_bytes * _FREED_SHARE)
        with self._lock:
            if self._num_bytes + size > limit or self._num_new_bytes > freed:
                self._read_at = -1
                self._refresh()
            if self._num_bytes + size <= limit:
                return
            by_age = sorted(self._files.items(), key=lambda file: file[1])
            for name, (_, num_bytes) in by_age:
                if self._num_bytes + size <= limit - freed:
                    break
                with suppress(FileNotFoundError):  # another process has removed it
                    (self._directory / name).unlink()
                    self.num_evictions += 1
                del self._files[name]
                self._num_bytes -= num_bytes

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            (self._directory / name).unlink()
        self._forget(name)

    def _forget(self, name: str) -> None:
        with self._lock:
            self._num_bytes -= self._files.pop(name, (0, 0))[1]


def _name(key: bytes) -> str:
    return f"{key.hex()}.kv"


def _header(key: bytes, content: NDArray[np.uint8]) -> bytes:
    return _MAGIC + key + sha256(content.data).digest()


def _read_into(descriptor: int, *buffers: Any) -> bool:
    """Fill the buffers from a file. Return False if it ends before."""
    for buffer in buffers:
        rest = memoryview(buffer)
        while rest:
            count = os.readv(descriptor, [rest])
            if not count:
                return False
            rest = rest[count:]
    return True


def _write_file(path: Path, *parts: Any) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        for part in parts:
            file.write(part)
