"""HTTP/1.1 as uvicorn speaks it, but for what never reaches the application: it is refused in
OpenAI's form, and the head of a request is bounded.
"""

from http import HTTPStatus

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway_http.protocol.error import ErrorBody, ErrorObject

# What most servers and proxies take; the API needs about one.
MAX_HEAD_BYTES = 64 << 10


class HttpProtocol(HttpToolsProtocol):
    """One connection. It ends with a request that cannot be parsed or whose head is too large."""

    _num_head_bytes = 0  # as the parser has told of them
    _num_raw_bytes = 0  # as they came, those of an unfinished header too
    _is_in_head = True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # The parser keeps an unfinished header to itself, however long it gets.
        if self._is_in_head:
            self._num_raw_bytes += len(data)
            if self._num_raw_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = self._num_raw_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._num_head_bytes = self._num_raw_bytes = 0
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Whatever the parser stumbled over; the words for it are uvicorn's own."""
        if max(self._num_head_bytes, self._num_raw_bytes) > MAX_HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            code = "headers_too_large"
            msg = f"The head of the request is too large: at most {MAX_HEAD_BYTES} bytes."
        else:
            status, code = HTTPStatus.BAD_REQUEST, "invalid_http"
        error = ErrorObject(msg, "invalid_request_error", None, code)
        body = msgspec.json.encode(ErrorBody(error))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise ValueError  # inside the parser, which ends with it
