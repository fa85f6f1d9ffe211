"""Files that may change while the process runs, such as keys, certificates and registries."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import structlog

from chatrpc_process.errors import ConfigError

Content = TypeVar("Content")

POLL_S = 2.0

log = structlog.get_logger(__name__)


class Reloaded(Protocol):
    """The state of files that are read again when they change."""

    @property
    def paths(self) -> Sequence[Path]:
        """The paths of the files."""
        ...

    @property
    def is_current(self) -> bool:
        """True if the content in use is that of the files when they were last checked."""
        ...

    @property
    def loaded_at_s(self) -> float:
        """The time at which the content in use was read, in seconds since 1970."""
        ...


class Watched(Generic[Content]):
    """The parsed content of files that may change.

    If a change cannot be parsed, the value stays as it was, and the files are read again at each
    refresh until they are valid. Any thread may refresh.

    Args:
        parse: Reads and parses all of the files. It may raise ConfigError.
        paths: The files.

    Raises:
        ConfigError: The files cannot be parsed at first.
    """

    # Files are polled. Notifications do not exist on all file systems. They would also miss files
    # that Kubernetes mounts: these change by a symbolic link in another directory.

    def __init__(self, parse: Callable[[], Content], *paths: Path) -> None:
        self.paths: Sequence[Path] = paths
        self._parse = parse
        self._lock = threading.Lock()
        self._state = self._states()
        self._failure: str | None = None
        self.value = parse()
        self.loaded_at_s = time.time()

    @property
    def is_current(self) -> bool:
        """True if the content in use is that of the files when they were last checked."""
        return self._failure is None

    def refresh(self) -> bool:
        """Read the files again if they have changed or could not be parsed.

        Returns:
            True if there is a new value.
        """
        with self._lock:
            state = self._states()
            if state == self._state and self._failure is None:
                return False
            self._state = state
            try:
                self.value = self._parse()
            except ConfigError as error:
                self._fail(str(error))
                return False
            except Exception as error:  # an exception would end the watching
                self._fail(type(error).__name__)  # the text of the error may quote a secret
                return False
            self._failure = None
            self.loaded_at_s = time.time()
            log.info("file_reloaded", files=self._names())
            return True

    def _fail(self, reason: str) -> None:
        """Store the reason, and log it if it differs from the previous one."""
        if reason != self._failure:
            log.error("file_reload_failed", files=self._names(), reason=reason)
        self._failure = reason

    async def watch(self, poll_s: float = POLL_S) -> None:
        """Refresh every `poll_s` seconds until cancelled."""
        while True:
            await asyncio.sleep(poll_s)
            # Parsing 10,000 keys takes most of a second, and is repeated while the file is invalid.
            await asyncio.to_thread(self.refresh)

    def _names(self) -> list[str]:
        return [str(path) for path in self.paths]

    def _states(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self.paths]


@asynccontextmanager
async def watching(*files: Watched[Any] | None, poll_s: float = POLL_S) -> AsyncIterator[None]:
    """Refresh the files that are not None every `poll_s` seconds while in the context."""
    tasks = [asyncio.ensure_future(each.watch(poll_s)) for each in files if each is not None]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
