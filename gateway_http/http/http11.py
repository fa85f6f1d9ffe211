"""HTTP/1.1 as uvicorn speaks it, but for what never reaches the application: it is refused in
OpenAI's form, and bounded in size, number and time.

Of an incomplete body the application keeps the time, since it is there already and can answer.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import httptools
import msgspec
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway_http.http.connections import Connections
from gateway_http.http.request_head import HeadFault, head_fault, without_chunks
from gateway_http.http.request_record import EarlyRejections, address
from gateway_http.http.transport import ClientTransport
from gateway_http.protocol.error import ErrorBody, ErrorObject

# What most servers and proxies take; the API needs about one.
MAX_HEAD_BYTES = 64 << 10
MAX_HEADERS = 100
# Requests that one connection has sent before their turn. Clients of today send none.
MAX_PIPELINED = 16
# The head of a chunk as clients write it: two line ends and a length of up to eight digits.
_CHUNK_HEAD_BYTES = 12


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one listener; the times are of one connection.

    Args:
        head_timeout_s: for the head of a request, from its first byte, or the connection's.
        body_timeout_s: for the rest of a body whose request has been answered already.
        write_timeout_s: that a client may leave unread what would be sent on.
        max_connections: for more, idle ones are closed. If none is idle, further ones are answered
            with 503, and twice as many not at all.
    """

    head_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    max_connections: int


class HttpProtocol(HttpToolsProtocol):
    """One connection. It ends with a request that cannot be parsed or exceeds a limit."""

    def __init__(
        self,
        limits: Limits,
        rejections: EarlyRejections,
        counted: Connections,
        **uvicorns: Any,
    ) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._rejections = rejections
        self._counted = counted
        self._fault: HeadFault | None = None
        self._num_head_bytes = 0  # as the parser has told of them
        self._num_raw_bytes = 0  # as they came, those of an unfinished header too
        self._num_headers = 0
        self._num_messages = 0
        self._num_body_bytes = 0  # of chunked bodies: of what they carry
        self._num_chunk_bytes = 0  # and of what they are carried in
        self._is_in_head = False
        self._is_head_known = False
        self._is_between_requests = True
        self._is_surplus = False
        self._is_cut = False
        self._answering: RequestResponseCycle | None = None
        self._arrival: asyncio.TimerHandle | None = None  # by when what is incomplete must be whole

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._client_transport = ClientTransport(
            transport, self._limits.write_timeout_s, lambda: self._cut("write"), self.loop
        )
        super().connection_made(cast("asyncio.Transport", self._client_transport))
        self._is_surplus = not self._counted.add(self, self.client[0] if self.client else "")
        self._expect(self._limits.head_timeout_s, self._on_late_head)
        if len(self.connections) > 2 * self._limits.max_connections:
            self._cut("limit")
        self._note_whether_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._counted.remove(self)
        self._expect_nothing()
        self._client_transport.stop_watching()
        super().connection_lost(exc)
        # uvicorn tells the last request alone, which may be pipelined behind the one in progress.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_surplus:  # told now, since a client reads no answer before it has asked
            self._rejections.count_cut("limit")
            self._refuse(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "There are too many connections. Please retry later.",
                "server_is_overloaded",
                kind="service_unavailable_error",
                headers="retry-after: 1\r\n",
                reason="TOO_MANY_CONNECTIONS",
            )
            return
        if self._arrival is None and self._is_between_requests:
            self._expect(self._limits.head_timeout_s, self._on_late_head)
        self._unset_keepalive_if_required()
        message = None if self._is_in_head or self._is_between_requests else self._num_messages
        self._num_body_bytes = 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        if message == self._num_messages and not self._is_between_requests:
            self._count_chunk_bytes(len(data) - self._num_body_bytes)
        # The parser keeps an unfinished header to itself, however long it gets.
        if self._is_in_head:
            self._num_raw_bytes += len(data)
            if self._num_raw_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        """As uvicorn does, but that a request for another protocol is one for this.

        Java's HTTP client asks for HTTP/2 (`Upgrade: h2c`) with its first request, body and all.
        The parser takes what follows the head for the other protocol, so another one goes on.
        """
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._begin_body_anew()
            else:
                return

    def _begin_body_anew(self) -> None:
        framing = [
            b"%s: %s\r\n" % (name, value)
            for name, value in self.headers
            if name in {b"content-length", b"transfer-encoding"}
        ]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._is_head_known = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
        finally:
            self._is_head_known = False

    def on_message_begin(self) -> None:
        if self._is_head_known:
            return
        super().on_message_begin()
        self._counted.note_busy(self)
        self._num_messages += 1
        self._num_chunk_bytes = 0
        self._is_between_requests = False
        self._is_in_head = True
        self._num_head_bytes = self._num_raw_bytes = self._num_headers = 0
        if self._arrival is None:
            self._expect(self._limits.head_timeout_s, self._on_late_head)

    def on_url(self, url: bytes) -> None:
        if self._is_head_known:
            return
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_head_known:
            return
        self._num_headers += 1
        self._count(len(name) + len(value))
        if self._is_in_head:  # what follows a body is a trailer, and nobody asks for one
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_head_known:
            return
        self._is_in_head = False
        self._num_head_bytes = self._num_raw_bytes = self._num_headers = 0
        self._expect(self._limits.body_timeout_s, self._on_late_body)
        version = self.parser.get_http_version()
        self._fault = head_fault(self.headers, version)
        if self._fault is not None:
            raise ValueError  # inside the parser, which ends with it
        if version == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._cut("limit")

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # it has a body yet
            return
        self._is_between_requests = True
        self._expect_nothing()
        super().on_message_complete()
        self._note_whether_idle()

    def on_body(self, body: bytes) -> None:
        self._num_body_bytes += len(body)
        super().on_body(body)

    def on_chunk_header(self) -> None:
        self._num_body_bytes += _CHUNK_HEAD_BYTES

    def give_way(self) -> None:
        """End the connection, which is idle, to make room for another one."""
        self.connections.discard(self)
        self._cut("idle")

    def _note_whether_idle(self) -> None:
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._is_between_requests and is_answered and not self.transport.is_closing():
            self._counted.note_idle(self)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] == "1.0":
            app = cast("ASGI3Application", without_chunks(cast("ASGIApp", app), cycle))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_whether_idle()

    def send_400_response(self, msg: str) -> None:
        """Whatever the parser stumbled over; the words for it are uvicorn's own."""
        if self._fault is not None:
            self._refuse(self._fault.status, self._fault.message, self._fault.code)
        elif self._is_head_too_large():
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The head of the request is too large: at most {MAX_HEAD_BYTES} bytes and "
                f"{MAX_HEADERS} headers.",
                "headers_too_large",
            )
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, msg, "invalid_http")

    def _refuse(
        self,
        status: HTTPStatus,
        message: str,
        code: str,
        *,
        kind: str = "invalid_request_error",
        headers: str = "",
        reason: str = "",
    ) -> None:
        self._rejections.note_rejected(status.value, reason or code.upper(), address(self.client))
        self._counted.note_busy(self)
        if self._is_answering():  # what is written now would become a part of that response
            self.transport.close()
            return
        body = msgspec.json.encode(ErrorBody(ErrorObject(message, kind, None, code)))
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\n"
            "content-type: application/json\r\n"
            f"content-length: {len(body)}\r\n"
            f"{headers}"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _is_answering(self) -> bool:
        cycle = self._answering
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _count_chunk_bytes(self, num_bytes: int) -> None:
        """Count bytes of a body that are not its content, beyond a few for each chunk."""
        self._num_chunk_bytes += max(0, num_bytes)
        if self._num_chunk_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._refuse(
                HTTPStatus.BAD_REQUEST,
                f"The chunks of the body have more than {MAX_HEAD_BYTES} bytes of extensions.",
                "invalid_http",
            )

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._is_head_too_large():
            raise ValueError  # inside the parser, which ends with it

    def _is_head_too_large(self) -> bool:
        num_bytes = max(self._num_head_bytes, self._num_raw_bytes)
        return num_bytes > MAX_HEAD_BYTES or self._num_headers > MAX_HEADERS

    def _expect(self, timeout_s: float, on_late: Callable[[], None]) -> None:
        self._expect_nothing()
        self._arrival = self.loop.call_later(timeout_s, on_late)

    def _expect_nothing(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _on_late_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # It is pipelined behind a request that is being answered.
            self._expect(self._limits.head_timeout_s, self._on_late_head)
            return
        if self._is_between_requests:  # nothing has been asked, and so nobody reads an answer
            self._note_cut("head")
            self.transport.close()
            return
        self._rejections.count_cut("head")
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            f"The head of the request took longer than {self._limits.head_timeout_s:g} s.",
            "request_timeout",
        )

    def _on_late_body(self) -> None:
        if not self.cycle.response_complete:  # the application will see to it
            self._expect(self._limits.body_timeout_s, self._on_late_body)
            return
        self._note_cut("body")
        self.transport.close()

    def _note_cut(self, reason: str) -> None:
        self._rejections.note_cut(reason, address(self.client))

    def _cut(self, reason: str) -> None:
        """End the connection with whatever was on its way."""
        if self._is_cut:
            return
        self._is_cut = True
        self._note_cut(reason)
        self.transport.abort()
