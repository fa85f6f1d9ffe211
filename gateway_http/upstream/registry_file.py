"""A registry file, which is reloaded when it or a file that it names has changed."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from chatrpc_process.files.watched import POLL_S, Watched
from chatrpc_process.tls import Validity
from gateway_http.upstream.registry import HostedModel, RegisteredModel, Registry, load_registry


class RegistryFile:
    """A registry file. If a changed file cannot be read, the last valid content stays in use.

    Args:
        path: The file.
        poll_s: The interval in seconds at which `watch` checks for changes.

    Raises:
        ConfigError: The file or a file that it names cannot be read.
    """

    def __init__(self, path: Path, poll_s: float = POLL_S) -> None:
        self._path = path
        self._poll_s = poll_s
        self._watched = self._watch()

    @property
    def entries(self) -> Sequence[RegisteredModel | HostedModel]:
        return self._watched.value.entries

    @property
    def paths(self) -> Sequence[Path]:
        """The registry file, and the files that it names."""
        return self._watched.paths

    @property
    def is_current(self) -> bool:
        """False if the last change could not be read."""
        return self._watched.is_current

    @property
    def loaded_at_s(self) -> float:
        return self._watched.loaded_at_s

    @property
    def validities(self) -> Sequence[Validity]:
        """The periods in which the certificates that the registry names are valid."""
        return self._watched.value.validities

    def refresh(self) -> bool:
        """Reload the file if it or a file that it names has changed; return whether it was read."""
        if not self._watched.refresh():
            return False
        # If this fails, the file has changed again. The content just read is used until the next
        # refresh.
        with suppress(Exception):
            self._watched = self._watch()
        return True

    async def watch(self, adopt: Callable[[Sequence[RegisteredModel | HostedModel]], None]) -> None:
        """Call `adopt` with the entries after each change. Never returns."""
        while True:
            await asyncio.sleep(self._poll_s)
            if self.refresh():
                adopt(self.entries)

    def _watch(self) -> Watched[Registry]:
        files = load_registry(self._path).files
        return Watched(lambda: load_registry(self._path), self._path, *files)
