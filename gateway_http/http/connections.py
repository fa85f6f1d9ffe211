"""The open connections of one listener, and which one to close if there are too many."""

from collections import Counter
from typing import Protocol


class Connection(Protocol):
    """A connection that can be closed to make room for another one."""

    def close_idle(self) -> None:
        """Close the connection, which is idle."""
        ...


class Connections:
    """Counts connections, in total and by the client's address, and keeps the idle ones in order.

    A connection is idle before its first request and between two requests.

    Args:
        max_connections: Maximum number of open connections.
        max_per_address: Maximum number of open connections from one address; None for no limit.
    """

    def __init__(self, max_connections: int, max_per_address: int | None = None) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._hosts: dict[Connection, str] = {}
        self._num_by_host: Counter[str] = Counter()
        self._idle: dict[Connection, None] = {}  # the one that has been idle longest is first

    def add(self, connection: Connection, host: str) -> bool:
        """Count a new connection if the limits permit it. Return whether they do.

        If a limit is reached, the connection that has been idle longest is closed to make room. If
        it is the limit of an address, only connections of that address are considered.
        """
        if not (self._make_room_of(host) and self._make_room()):
            return False
        self._hosts[connection] = host
        self._num_by_host[host] += 1
        return True

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection. Does nothing if it is not counted."""
        self._idle.pop(connection, None)
        host = self._hosts.pop(connection, None)
        if host is not None:
            self._num_by_host[host] -= 1
            if not self._num_by_host[host]:
                del self._num_by_host[host]

    def note_idle(self, connection: Connection) -> None:
        """Note that a connection is idle. Does nothing if it is idle already, or is not counted."""
        if connection in self._hosts:
            self._idle.setdefault(connection)

    def note_busy(self, connection: Connection) -> None:
        """Note that a connection is not idle."""
        self._idle.pop(connection, None)

    def _make_room(self) -> bool:
        if len(self._hosts) < self._max_connections:
            return True
        return self._close(next(iter(self._idle), None))

    def _make_room_of(self, host: str) -> bool:
        most = self._max_per_address
        if most is None or self._num_by_host[host] < most:
            return True
        return self._close(next((one for one in self._idle if self._hosts[one] == host), None))

    def _close(self, connection: Connection | None) -> bool:
        if connection is None:
            return False
        self.remove(connection)
        connection.close_idle()
        return True
