"""HTTP/1.1 on one connection: uvicorn's protocol, with limits, timeouts and OpenAI's errors.

Requests whose head is invalid, too large or too slow are rejected here, before the application gets
them. The application enforces the timeout of a body, since it can send the response.

This subclasses private classes of uvicorn, so pyproject.toml bounds uvicorn's version.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, cast

import httptools
from starlette.types import ASGIApp
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway_http.http.arrival_timer import ArrivalTimer
from gateway_http.http.connections import Connections
from gateway_http.http.early_response import early_response
from gateway_http.http.head_limits import MAX_HEAD_BYTES, MAX_HEADERS, ChunkOverhead, HeadSize
from gateway_http.http.request_head import head_fault, without_chunks
from gateway_http.http.request_record import EarlyRejections, address
from gateway_http.http.transport import ClientTransport
from gateway_http.http.upgrades import UpgradedRequest
from gateway_http.protocol.error import ApiError, InvalidRequest, ServiceUnavailable

# Maximum number of pipelined requests, which wait on a connection for an earlier response. Current
# clients do not send any.
MAX_PIPELINED = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of the connections of one listener.

    Args:
        head_timeout_s: The maximum duration of receiving a head, from its first byte, or from the
            beginning of the connection.
        body_timeout_s: The maximum duration of receiving the rest of a body after the response.
        write_timeout_s: The maximum duration for which a client may not read its response.
        max_connections: Maximum number of connections. If it is reached, an idle connection is
            closed to make room for a new one. If none is idle, the new one's request is rejected
            with 503. Above twice this number, new connections are closed at once.
    """

    head_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float
    max_connections: int


class HttpProtocol(HttpToolsProtocol):
    """A connection. It is closed after a request that cannot be parsed or exceeds a limit."""

    def __init__(
        self,
        limits: Limits,
        rejections: EarlyRejections,
        open_connections: Connections,
        **uvicorn_arguments: Any,
    ) -> None:
        super().__init__(**uvicorn_arguments)
        self._limits = limits
        self._rejections = rejections
        self._open_connections = open_connections
        self._arrival = ArrivalTimer(self.loop)
        self._head_size = HeadSize()
        self._chunk_overhead = ChunkOverhead()
        self._fault: ApiError | None = None  # why the head is rejected
        self._num_messages = 0
        self._is_in_head = False
        self._is_between_requests = True
        self._is_surplus = False
        self._is_cut = False
        self._answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._client_transport = ClientTransport(
            transport, self._limits.write_timeout_s, lambda: self._cut("write"), self.loop
        )
        super().connection_made(cast("asyncio.Transport", self._client_transport))
        host = self.client[0] if self.client else ""
        self._is_surplus = not self._open_connections.add(self, host)
        self._arrival.start(self._limits.head_timeout_s, self._on_late_head)
        if len(self.connections) > 2 * self._limits.max_connections:
            self._cut("limit")
        self._note_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_connections.remove(self)
        self._arrival.stop()
        self._client_transport.stop_watching()
        super().connection_lost(exc)
        # uvicorn informs only the last request, which may be pipelined after the running one.
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._is_surplus:  # only now, since a client sends its request before it reads
            self._rejections.count_cut("limit")
            self._reject(
                ServiceUnavailable(
                    "There are too many connections. Please retry later.",
                    "server_is_overloaded",
                    reason="TOO_MANY_CONNECTIONS",
                )
            )
            return
        if self._is_between_requests and not self._arrival.is_running:
            self._arrival.start(self._limits.head_timeout_s, self._on_late_head)
        self._unset_keepalive_if_required()
        message = None if self._is_in_head or self._is_between_requests else self._num_messages
        self._chunk_overhead.begin_data()
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
            return
        is_same_body = message == self._num_messages and not self._is_between_requests
        if is_same_body:
            self._chunk_overhead.end_data(len(data))
            if self._chunk_overhead.is_exceeded and not self.transport.is_closing():
                self._reject(
                    _invalid_http(
                        f"The chunks of the body have more than {MAX_HEAD_BYTES} bytes of "
                        "extensions."
                    )
                )
        if self._is_in_head:
            self._head_size.add_received(len(data))
            if self._head_size.is_exceeded and not self.transport.is_closing():
                self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        """Parse received data. A request for another protocol is served with HTTP/1.1."""
        rest = memoryview(data)
        while True:
            try:
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                request = UpgradedRequest(self)
                self.parser = request.parser
                request.replay_head(self.headers)
            else:
                return

    # Callbacks of the parser. An exception in one makes the parser raise HttpParserError.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._open_connections.note_busy(self)
        self._num_messages += 1
        self._chunk_overhead.begin_body()
        self._is_between_requests = False
        self._is_in_head = True
        self._head_size.reset()
        if not self._arrival.is_running:
            self._arrival.start(self._limits.head_timeout_s, self._on_late_head)

    def on_url(self, url: bytes) -> None:
        self._head_size.add_url(url)
        self._check_head_size()
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size.add_header(name, value)
        self._check_head_size()
        if self._is_in_head:  # a header after the body is a trailer, which the API does not use
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_size.reset()
        self._arrival.start(self._limits.body_timeout_s, self._on_late_body)
        version = self.parser.get_http_version()
        self._fault = head_fault(self.headers, version)
        if self._fault is not None:
            raise self._fault
        if version == "1.0":
            self.expect_100_continue = False
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._cut("limit")

    def on_chunk_header(self) -> None:
        self._chunk_overhead.add_chunk()

    def on_body(self, body: bytes) -> None:
        self._chunk_overhead.add_content(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # another parser reads its body
            return
        self._is_between_requests = True
        self._arrival.stop()
        super().on_message_complete()
        self._note_if_idle()

    def _check_head_size(self) -> None:
        if self._head_size.is_exceeded:
            raise ValueError

    # The life of requests and of the connection.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        if cycle.scope["http_version"] == "1.0":
            app = cast("ASGI3Application", without_chunks(cast("ASGIApp", app), cycle))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_if_idle()

    def close_idle(self) -> None:
        """Close the connection, which is idle, to make room for another one."""
        self.connections.discard(self)
        self._cut("idle")

    def _note_if_idle(self) -> None:
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._is_between_requests and is_answered and not self.transport.is_closing():
            self._open_connections.note_idle(self)

    # Rejections.

    def send_400_response(self, msg: str) -> None:
        """Reject a request that cannot be parsed. `msg` is used if no fault has been found here."""
        if self._fault is not None:
            self._reject(self._fault)
        elif self._head_size.is_exceeded:
            self._reject(
                ApiError(
                    431,
                    f"The head of the request is too large: at most {MAX_HEAD_BYTES} bytes and "
                    f"{MAX_HEADERS} headers.",
                    code="headers_too_large",
                )
            )
        else:
            self._reject(_invalid_http(msg))

    def _reject(self, error: ApiError) -> None:
        """Send an error response and close the connection."""
        self._rejections.note_rejected(error.status, error.reason, address(self.client))
        self._open_connections.note_busy(self)
        if not self._is_in_response():  # otherwise these bytes would become a part of that response
            self.transport.write(early_response(error))
        self.transport.close()

    def _is_in_response(self) -> bool:
        cycle = self._answering
        return cycle is not None and cycle.response_started and not cycle.response_complete

    def _on_late_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The request is pipelined: the response to an earlier one is in progress.
            self._arrival.start(self._limits.head_timeout_s, self._on_late_head)
            return
        if self._is_between_requests:  # no request has begun, so the client reads no response
            self._note_cut("head")
            self.transport.close()
            return
        self._rejections.count_cut("head")
        timeout_s = self._limits.head_timeout_s
        message = f"The head of the request took longer than {timeout_s:g} s."
        self._reject(ApiError(408, message, code="request_timeout"))

    def _on_late_body(self) -> None:
        if (
            not self.cycle.response_complete
        ):  # the application reads the body, and has its own timeout
            self._arrival.start(self._limits.body_timeout_s, self._on_late_body)
            return
        self._note_cut("body")
        self.transport.close()

    def _cut(self, reason: str) -> None:
        """Close the connection at once, and drop bytes that have not been sent yet."""
        if self._is_cut:
            return
        self._is_cut = True
        self._note_cut(reason)
        self.transport.abort()

    def _note_cut(self, reason: str) -> None:
        self._rejections.note_cut(reason, address(self.client))


def _invalid_http(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_http")
