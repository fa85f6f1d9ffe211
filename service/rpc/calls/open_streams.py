"""A bound on the streams that calls without a key hold open."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import TooManyStreams


class OpenStreams:
    """Counts streams by the address of their client.

    When there are too many, the oldest stream of the address that has most is ended, so that one
    client cannot take the place of the others: gRPC's own balancers need a stream or two each.

    Args:
        limit: How many streams may be open, of all clients together.
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
            peer: Its client, as gRPC writes it: `ipv4:127.0.0.1:4711`.

        Raises:
            TooManyStreams: It was ended for another one.
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
        """Do nothing if the stream has been ended before."""
        streams = self._by_address.get(address, {})
        streams.pop(number, None)
        if not streams:
            self._by_address.pop(address, None)
