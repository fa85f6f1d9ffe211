"""Requests that ask for another protocol, which are served with HTTP/1.1.

Java's HTTP client asks for HTTP/2 (`Upgrade: h2c`) with its first request, which may have a body.
httptools stops at the end of such a head: it takes the following bytes for the other protocol.
"""

from collections.abc import Sequence
from typing import Any

import httptools

_FRAMING = {b"content-length", b"transfer-encoding"}


class UpgradedRequest:
    """Continues after the head of a request that asks for another protocol, with a new parser.

    The new parser gets a head that frames the same body. Its callbacks for that head are ignored;
    all others are passed to `protocol`.

    Attributes:
        parser: The new parser.
    """

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self._is_replaying = False
        self.on_body = protocol.on_body
        self.on_chunk_header = protocol.on_chunk_header
        self.on_message_complete = protocol.on_message_complete
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # uvicorn sets it, too

    def replay_head(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Feed the parser a head that contains only those of `headers` that frame the body.

        A request without a body is complete after this.
        """
        framing = b"".join(
            b"%s: %s\r\n" % (name, value) for name, value in headers if name in _FRAMING
        )
        self._is_replaying = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % framing)
        finally:
            self._is_replaying = False

    def on_message_begin(self) -> None:
        if not self._is_replaying:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._is_replaying:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_replaying:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if not self._is_replaying:
            self._protocol.on_headers_complete()
