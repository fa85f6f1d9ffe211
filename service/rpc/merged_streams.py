"""Several generators read as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")
_Reply = TypeVar("_Reply")


class Merged(Generic[_T, _Reply]):
    """The items of `sources` as they come, each with the place of its source.

    Nothing may read the sources beside this; closing it closes them all.
    """

    def __init__(self, sources: Sequence[AsyncGenerator[_T, _Reply | None]]) -> None:
        self._sources = sources
        self._reads: dict[asyncio.Future[_T], int] = {}
        self._unread = list(range(len(sources)))  # those of which no item is on its way

    async def next(self, reply: _Reply | None = None) -> tuple[int, _T]:
        """The next item of any source; what a source raises. None may have ended by itself.

        `reply` is sent to the source of the last item.
        """
        for place in self._unread:
            self._reads[asyncio.ensure_future(self._sources[place].asend(reply))] = place
        self._unread.clear()
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        read = min(done, key=self._reads.__getitem__)
        place = self._reads.pop(read)
        item = read.result()
        self._unread.append(place)
        return place, item

    async def drop(self, place: int) -> None:
        """Close one source and read the others on."""
        for read in [read for read, of in self._reads.items() if of == place]:
            del self._reads[read]
            await _end(read)
        self._unread = [other for other in self._unread if other != place]
        await self._sources[place].aclose()

    async def aclose(self) -> None:
        for read in self._reads:
            await _end(read)
        self._reads.clear()
        for source in self._sources:
            await source.aclose()


async def _end(read: "asyncio.Future[_T]") -> None:
    """A generator may be closed only when nobody reads it."""
    read.cancel()
    await asyncio.gather(read, return_exceptions=True)
