"""A file that may change while the process runs: keys, certificates, routes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from chatrpc_process.settings import ConfigError

Content = TypeVar("Content")

_POLL_S = 2.0

log = structlog.get_logger(__name__)


class Watched(Generic[Content]):
    """What files hold, parsed. A change that cannot be read leaves what there was, and is tried
    again: what it waits for may be in other files.

    Files are looked at by their state, not by notification: those that Kubernetes mounts change by
    a link elsewhere, and some file systems notify nobody.

    Args:
        parse: reads all of the files. It may raise ConfigError.

    Raises:
        ConfigError: what there is at first cannot be read.
    """

    def __init__(self, parse: Callable[[], Content], *paths: Path) -> None:
        self._paths = paths
        self._parse = parse
        self._state = self._look()
        self._failure: str | None = None
        self.value = parse()

    def refresh(self) -> bool:
        """Read the files again if they have changed, or could not be read; whether there is a new
        value.
        """
        state = self._look()
        if state == self._state and self._failure is None:
            return False
        self._state = state
        try:
            self.value = self._parse()
        except ConfigError as error:
            self._fail(str(error))
            return False
        except Exception as error:  # nobody would follow the files any more
            self._fail(type(error).__name__)  # its words may quote a secret
            return False
        self._failure = None
        log.info("file_reloaded", files=self._names())
        return True

    def _fail(self, reason: str) -> None:
        """What is wrong is said once."""
        if reason != self._failure:
            log.error("file_reload_failed", files=self._names(), reason=reason)
        self._failure = reason

    async def watch(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(_POLL_S)
            self.refresh()

    def _names(self) -> list[str]:
        return [str(path) for path in self._paths]

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_state(path) for path in self._paths]


@asynccontextmanager
async def watching(*files: Watched[Any] | None) -> AsyncIterator[None]:
    """Refresh them, those that there are, for as long as the body runs."""
    tasks = [asyncio.ensure_future(each.watch()) for each in files if each is not None]
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
