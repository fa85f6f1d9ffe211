"""Limits the number of open streams of calls without a key."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import TooManyStreams


class OpenStreams:
    """Counts open streams by the address of their client.

    If there are too many, the oldest stream of the address with the most streams is ended. So one
    client cannot use the streams that others need: gRPC's own balancers need one or two each.

    Args:
        limit: Maximum number of open streams of all clients together.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_address: dict[str, dict[int, asyncio.Timeout]] = {}
        self._num_opened = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_address.values()))

    @asynccontextmanager
    async def opened(self, peer: str) -> AsyncIterator[None]:
        """Count a stream while in the context.

        Args:
            peer: The address of its client as gRPC writes it, such as `ipv4:127.0.0.1:4711`.

        Raises:
            TooManyStreams: The stream was ended because a later one was opened.
        """
        address = peer.rpartition(":")[0] if peer.startswith("ipv") else peer
        number = self._num_opened
        self._num_opened += 1
        try:
            async with asyncio.timeout(None) as scope:
                self._by_address.setdefault(address, {})[number] = scope
                if len(self) > self._limit:
                    self._end_one()
                yield
        except TimeoutError:
            raise TooManyStreams from None
        finally:
            self._forget(address, number)

    def _end_one(self) -> None:
        address, streams = max(self._by_address.items(), key=lambda item: len(item[1]))
        number = min(streams)
        streams[number].reschedule(asyncio.get_running_loop().time())
        self._forget(address, number)

    def _forget(self, address: str, number: int) -> None:
        """Remove a stream. Does nothing if it is already removed."""
        streams = self._by_address.get(address, {})
        streams.pop(number, None)
        if not streams:
            self._by_address.pop(address, None)
