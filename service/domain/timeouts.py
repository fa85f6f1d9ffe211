"""Timeouts for clients."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientTimeouts:
    """Timeouts for receiving a request and for a blocked write, in seconds.

    The options `--body-timeout-s` and `--write-timeout-s` take their defaults from here.

    Attributes:
        receive_s: Maximum time to receive the message of a request.
        write_s: Maximum time for which a client may leave a response unread.
    """

    receive_s: float = 60.0
    write_s: float = 60.0
