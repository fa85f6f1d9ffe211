"""Reads several async generators as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Generic, TypeVar

_T = TypeVar("_T")
_Reply = TypeVar("_Reply")


class MergedStreams(Generic[_T, _Reply]):
    """The items of `sources` in order of arrival, each with the index of its source.

    Nothing else may read the sources. Closing this object closes them all.
    """

    def __init__(self, sources: Sequence[AsyncGenerator[_T, _Reply | None]]) -> None:
        self._sources = sources
        self._reads: dict[asyncio.Future[_T], int] = {}
        # Indices of the open sources that are not being read.
        self._unread = list(range(len(sources)))

    async def next(self, reply: _Reply | None = None) -> tuple[int, _T]:
        """Return the index of a source and its next item.

        After the last item of a source, call `drop` for it.

        Args:
            reply: Value that is sent to the source of the last item.

        Raises:
            Exception: The exception that a source raised.
        """
        if not self._reads and len(self._unread) == 1:  # faster, because it needs no task
            index = self._unread[0]
            return index, await self._sources[index].asend(reply)
        for index in self._unread:
            self._reads[asyncio.ensure_future(self._sources[index].asend(reply))] = index
        self._unread.clear()
        done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
        read = min(done, key=self._reads.__getitem__)
        index = self._reads.pop(read)
        item = read.result()
        self._unread.append(index)
        return index, item

    async def drop(self, index: int) -> None:
        """Close one source. The others can still be read."""
        for read in [read for read, of in self._reads.items() if of == index]:
            del self._reads[read]
            await _end(read)
        self._unread = [other for other in self._unread if other != index]
        await self._sources[index].aclose()

    async def aclose(self) -> None:
        for read in self._reads:
            await _end(read)
        self._reads.clear()
        for source in self._sources:
            await source.aclose()


async def _end(read: "asyncio.Future[_T]") -> None:
    """Cancel a read. A generator can be closed only when nothing reads it."""
    read.cancel()
    await asyncio.gather(read, return_exceptions=True)
