"""Several generators, merged into one."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from service.generation.merged_streams import MergedStreams


class Source:
    """A stream of the items of a queue. `is_closed` is True once it has been closed."""

    def __init__(self) -> None:
        self.items: asyncio.Queue[int | Exception] = asyncio.Queue()
        self.is_closed = False

    async def read(self) -> AsyncGenerator[int, None]:
        try:
            while True:
                item = await self.items.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.is_closed = True


async def test_items_are_returned_in_the_order_of_their_arrival() -> None:
    a, b = Source(), Source()
    async with aclosing(MergedStreams([a.read(), b.read()])) as merged:
        b.items.put_nowait(1)
        assert await merged.next() == (1, 1)
        a.items.put_nowait(2)
        a.items.put_nowait(3)
        assert [await merged.next(), await merged.next()] == [(0, 2), (0, 3)]
    assert a.is_closed
    assert b.is_closed


async def test_dropped_source_is_closed_and_others_are_still_read() -> None:
    a, b = Source(), Source()
    async with aclosing(MergedStreams([a.read(), b.read()])) as merged:
        a.items.put_nowait(1)
        await merged.next()
        await merged.drop(0)
        assert a.is_closed
        assert not b.is_closed
        b.items.put_nowait(2)
        assert await merged.next() == (1, 2)


async def test_error_of_a_source_is_raised_and_closes_all() -> None:
    a, b = Source(), Source()
    b.items.put_nowait(ValueError("b"))
    with pytest.raises(ValueError, match="b"):
        async with aclosing(MergedStreams([a.read(), b.read()])) as merged:
            await merged.next()
    assert a.is_closed
    assert b.is_closed


async def test_cancelled_read_closes_all_sources() -> None:
    sources = [Source(), Source()]

    async def wait() -> None:
        async with aclosing(MergedStreams([source.read() for source in sources])) as merged:
            await merged.next()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert waiting.cancelled()
    # A generator that has not begun has nothing to free.
    assert all(source.is_closed for source in sources)
