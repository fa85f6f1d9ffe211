"""Middleware that gives every request an id, a normalized path, a log line, metrics and a span, and
turns exceptions into error responses.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from urllib.parse import unquote

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatrpc_process.logs.limited import LimitedLog
from chatrpc_process.tracing.api import OFF, Kind, Span, TraceContext, Tracer, Value, within
from gateway_http.errors import from_exception
from gateway_http.http.api_style import OPENAI, ApiStyle
from gateway_http.http.endpoint import PathLabels
from gateway_http.http.request_io import json_response
from gateway_http.http.request_record import RequestRecord, address, milliseconds
from gateway_http.metrics import Metrics

_log = structlog.get_logger(__name__)

_CLIENT_CLOSED_REQUEST = 499
_CLIENT_DISCONNECTED = "CLIENT_DISCONNECTED"
_MAX_REQUEST_ID = 128


class RequestLog:
    """ASGI middleware. It puts the `context` of a request into the request's state.

    An exception becomes an error response, unless the response has begun.

    Probes are counted separately, logged at debug level and not traced. They arrive every few
    seconds, and would dominate rates and percentiles.

    Args:
        metrics: The gateway's metrics.
        labels: The labels of paths.
        draining: Once set, each response is the last of its connection, so that clients connect to
            another gateway.
        tracer: Records the spans of requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        labels: PathLabels,
        draining: asyncio.Event,
        tracer: Tracer = OFF,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._labels = labels
        self._draining = draining
        self._tracer = tracer
        self._limited_log = LimitedLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["path"] = _normalized_path(scope)
        route = self._labels.of(scope["path"])
        style = self._labels.styles.get(route, OPENAI)
        context = RequestContext(send, headers, self._draining, style)
        scope["state"]["context"] = context
        context.record.client = address(scope.get("client"))
        context.record.user_agent = headers.get("user-agent", "")
        is_probe = route in self._labels.probes
        span = self._start_span(scope, headers, is_probe=is_probe)
        with (
            within(span),
            structlog.contextvars.bound_contextvars(request_id=context.request_id),
            self._in_flight(is_probe=is_probe),
        ):
            _log.debug("request_started", method=scope["method"], route=route)
            try:
                await self._serve(scope, receive, context)
            finally:
                self._record(scope["method"], route, context, is_probe=is_probe)
                _end_span(span, scope["method"], route, context)

    def _in_flight(self, *, is_probe: bool) -> AbstractContextManager[object]:
        return nullcontext() if is_probe else self._metrics.in_flight.track_inprogress()

    async def _serve(self, scope: Scope, receive: Receive, context: "RequestContext") -> None:
        try:
            await self._app(scope, receive, context.send)
        except ClientDisconnect:
            context.status = _CLIENT_CLOSED_REQUEST
            context.record.reason = _CLIENT_DISCONNECTED
        except Exception as error:
            if context.first_byte_s is not None:
                context.record.reason = "INTERNAL"
                raise
            api_error = from_exception(error)
            context.record.fail(api_error)
            body = context.style.error(api_error, context.request_id)
            response = json_response(body, api_error.status, api_error.headers)
            await response(scope, receive, context.send)

    def _start_span(self, scope: Scope, headers: Headers, *, is_probe: bool) -> Span:
        tracer = OFF if is_probe else self._tracer
        parent = TraceContext.read(headers.items())
        return tracer.start(scope["method"], Kind.SERVER, parent, _request_attributes(scope))

    def _record(
        self, method: str, route: str, context: "RequestContext", *, is_probe: bool
    ) -> None:
        fields = {
            "method": method,
            "route": route,
            "status": context.status,
            "duration_ms": milliseconds(context.elapsed_s()),
            **context.record.log_fields(),
        }
        if is_probe:
            self._metrics.probes.labels(route, context.status).inc()
            _log.debug("request_finished", **fields)
            return
        self._count(route, context)
        if context.record.reason == "UNAUTHENTICATED":  # clients can cause any number without a key
            self._limited_log.write(_log.info, "request_finished", kind=route, **fields)
        else:
            _log.info("request_finished", **fields)

    def _count(self, route: str, context: "RequestContext") -> None:
        metrics, reason = self._metrics, context.record.reason
        model = metrics.models.of(context.record.model)
        metrics.requests.labels(route, model, context.status).inc()
        metrics.duration_s.labels(route, model).observe(context.elapsed_s())
        if context.first_byte_s is not None:
            metrics.first_byte_s.labels(route, model).observe(context.first_byte_s)
        if context.status == _CLIENT_CLOSED_REQUEST:
            metrics.disconnects.labels(route, model).inc()
        elif reason:
            metrics.failures.labels(route, model, reason).inc()


class RequestContext:
    """A request and its response, from the request's head to the response's end.

    Attributes:
        record: The facts for the log line and the metrics.
        style: The form of the response.
        request_id: The client's id, or a new one.
        status: The status of the response; 499 until its head is sent.
        first_byte_s: The time in seconds from the head of the request to that of the response; None
            if it has not been sent.
        limit_headers: Returns the headers about the caller's limits. It is called when the head is
            sent.
    """

    def __init__(
        self, send: Send, headers: Headers, draining: asyncio.Event, style: ApiStyle = OPENAI
    ) -> None:
        self._send = send
        self.style = style
        self._draining = draining
        self.record = RequestRecord()
        sent = _sent_id(headers)
        self._is_id_sent = bool(sent)
        self.request_id = sent or f"req_{uuid.uuid4().hex}"
        self._started_at_s = time.perf_counter()
        self.first_byte_s: float | None = None
        self.status = _CLIENT_CLOSED_REQUEST
        self.limit_headers: Callable[[], Mapping[str, str]] = dict

    def suggest_id(self, request_id: str) -> None:
        """Use the id from the body, unless a header has one."""
        if not self._is_id_sent:
            self.request_id = request_id
            structlog.contextvars.bind_contextvars(request_id=request_id)

    def elapsed_s(self) -> float:
        """Return the time in seconds since the head of the request."""
        return time.perf_counter() - self._started_at_s

    async def send(self, message: Message) -> None:
        """Send a message of the response. Adds the headers that every response has to its head."""
        if message["type"] == "http.response.start":
            self.first_byte_s = self.elapsed_s()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = headers[self.style.id_header] = self.request_id
            headers.update(self.limit_headers())
            headers["openai-processing-ms"] = str(round(self.first_byte_s * 1000))
            if self._draining.is_set():
                # A later request on a connection that is being closed would be lost.
                headers["connection"] = "close"
        await self._send(message)


def _normalized_path(scope: Scope) -> str:
    """Return the path without empty segments. A slash written as %2F is part of a segment."""
    raw: bytes = scope["raw_path"]
    return unquote("/" + "/".join(filter(None, raw.decode("ascii").split("/"))))


def _sent_id(headers: Headers) -> str:
    """Return the client's id without characters that are unfit for headers and logs.

    Return "" if the client sent none.
    """
    for name in ("x-request-id", "x-client-request-id"):
        if sent := re.sub(r"[^\x21-\x7e]", "", headers.get(name, "")):
            return sent[:_MAX_REQUEST_ID]
    return ""


def _request_attributes(scope: Scope) -> dict[str, Value]:
    """Return the attributes of a request's span, without the query.

    https://opentelemetry.io/docs/specs/semconv/http/http-spans/ defines them.
    """
    found: dict[str, Value] = {
        "http.request.method": scope["method"],
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
    }
    for name in ("client", "server"):
        if scope.get(name) is not None:
            host, port = scope[name]
            found |= {f"{name}.address": host, f"{name}.port": port}
    return found


def _end_span(span: Span, method: str, route: str, context: RequestContext) -> None:
    if span.is_recording:
        span.rename(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": context.status})
        if context.status >= 500:
            span.fail(str(context.status))
    span.end()
