"""Several generators read as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Merged(Generic[_T]):
    """The items of `sources` as they come, each with the place of its source.

    Of each source one item at most is read ahead. Nothing may read the sources beside this; closing
    it closes them all.
    """

    def __init__(self, sources: Sequence[AsyncGenerator[_T, None]]) -> None:
        self._sources = sources
        self._reads: dict[asyncio.Future[_T], int] = {}
        self._is_started = False

    async def next(self) -> tuple[int, _T]:
        """The next item of any source; what a source raises. None may have ended by itself."""
        if not self._is_started:
            self._is_started = True
            for place in range(len(self._sources)):
                self._read(place)
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        read = min(done, key=self._reads.__getitem__)
        place = self._reads.pop(read)
        item = read.result()
        self._read(place)
        return place, item

    async def drop(self, place: int) -> None:
        """Close one source and read the others on."""
        for read in [read for read, of in self._reads.items() if of == place]:
            del self._reads[read]
            await _end(read)
        await self._sources[place].aclose()

    async def aclose(self) -> None:
        for read in self._reads:
            await _end(read)
        self._reads.clear()
        for source in self._sources:
            await source.aclose()

    def _read(self, place: int) -> None:
        self._reads[asyncio.ensure_future(anext(self._sources[place]))] = place


async def _end(read: "asyncio.Future[_T]") -> None:
    """A generator may be closed only when nobody reads it."""
    read.cancel()
    await asyncio.gather(read, return_exceptions=True)
