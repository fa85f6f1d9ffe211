"""The registry's file, followed through its changes and those of the files that it names."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from chatrpc_process.files.watched import Watched
from chatrpc_process.tls import Validity
from gateway_http.upstream.registry import Entry, Registry, load_registry

POLL_S = 2.0


class RegistryFile:
    """What the file says; a change that cannot be read leaves what there was.

    Raises:
        ConfigError: what there is at first cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = self._watch()

    @property
    def entries(self) -> Sequence[Entry]:
        return self._watched.value.entries

    @property
    def paths(self) -> Sequence[Path]:
        """The registry's file, and those that it names."""
        return self._watched.paths

    @property
    def is_current(self) -> bool:
        return self._watched.is_current

    @property
    def loaded_at_s(self) -> float:
        return self._watched.loaded_at_s

    @property
    def validities(self) -> Sequence[Validity]:
        """When the certificates are valid that the registry names."""
        return self._watched.value.validities

    def refresh(self) -> bool:
        """Read it again if it has changed, or what it names has; whether there is something new."""
        if not self._watched.refresh():
            return False
        # What fails now has changed once more: what was read just now holds until the next time.
        with suppress(Exception):
            self._watched = self._watch()
        return True

    async def watch(self, adopt: Callable[[Sequence[Entry]], None]) -> None:
        """Hand over what is new, for ever."""
        while True:
            await asyncio.sleep(POLL_S)
            if self.refresh():
                adopt(self.entries)

    def _watch(self) -> Watched[Registry]:
        files = load_registry(self._path).files
        return Watched(lambda: load_registry(self._path), self._path, *files)
