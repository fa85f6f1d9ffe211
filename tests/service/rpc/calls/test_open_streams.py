"""Limits of the number of open streams."""

import asyncio

import pytest

from service.errors import TooManyStreams
from service.rpc.calls.open_streams import OpenStreams


async def hold(streams: OpenStreams, peer: str) -> None:
    async with streams.opened(peer):
        await asyncio.Event().wait()


def open_all(streams: OpenStreams, *peers: str) -> list["asyncio.Task[None]"]:
    return [asyncio.ensure_future(hold(streams, peer)) for peer in peers]


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def end(tasks: list["asyncio.Task[None]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_oldest_stream_of_the_address_with_most_is_ended() -> None:
    streams = OpenStreams(4)
    tasks = open_all(streams, *(f"ipv4:10.0.0.1:{port}" for port in (1, 2, 3)))
    honest = open_all(streams, "ipv4:10.0.0.2:1", "ipv6:[::1]:1")
    await turns()
    assert len(streams) == 4
    assert [task.done() for task in [*tasks, *honest]] == [True, False, False, False, False]
    with pytest.raises(TooManyStreams):
        await tasks[0]
    await end([*tasks, *honest])
    assert len(streams) == 0


async def test_client_that_floods_loses_its_own_streams_only() -> None:
    streams = OpenStreams(10)
    honest = open_all(streams, "ipv4:10.0.0.2:1", "unix:/run/a")
    flood = open_all(streams, *(f"ipv4:10.0.0.1:{port}" for port in range(200)))
    await turns()
    assert len(streams) == 10
    assert not any(task.done() for task in honest)
    await end([*honest, *flood])


async def test_finished_stream_frees_capacity_for_another() -> None:
    streams = OpenStreams(1)
    first = open_all(streams, "ipv4:10.0.0.1:1")
    await turns()
    await end(first)
    second = open_all(streams, "ipv4:10.0.0.1:1")
    await turns()
    assert not second[0].done()
    await end(second)
