"""What every request gets, whatever its route: an id, a clean path, a log line and metrics."""

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

from chatrpc_process.access.secret import sent_secret
from chatrpc_process.files.watched import Watched
from chatrpc_process.logs.limited import LimitedLog
from chatrpc_process.tracing.api import OFF, Kind, Span, TraceContext, Tracer, Value, within
from gateway_http.auth.caller import Caller
from gateway_http.endpoints import ENDPOINTS, route_of
from gateway_http.errors import from_exception
from gateway_http.http.request_io import json_response
from gateway_http.http.request_record import RequestRecord, address, milliseconds
from gateway_http.metrics import Metrics
from gateway_http.upstream.call_metadata import CallMetadata

_log = structlog.get_logger(__name__)

_CLIENT_CLOSED_REQUEST = 499
_CLIENT_DISCONNECTED = "CLIENT_DISCONNECTED"
_MAX_REQUEST_ID = 128
_PRINTABLE = re.compile(r"[\x20-\x7e]{1,1024}")
# Called every few seconds, by machines that keep their own record: beside them a few requests of
# clients would be lost in every rate and percentile.
_QUIET_ROUTES = {
    path
    for endpoint in ENDPOINTS
    if endpoint.is_probe or endpoint.name == "metrics"
    for path in endpoint.paths
}


class Access:
    """ASGI middleware. Failures end here as OpenAI's error object, unless the answer has begun.

    It leaves the `exchange` in the request's state.

    Args:
        draining: once set, clients are told with each answer to connect anew, elsewhere.
        upstream_secret: the key that the service is shown; None: the caller's own.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        draining: asyncio.Event,
        tracer: Tracer = OFF,
        upstream_secret: Watched[str] | None = None,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._draining = draining
        self._tracer = tracer
        self._upstream_secret = upstream_secret
        self._limited_log = LimitedLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        secret = None if self._upstream_secret is None else self._upstream_secret.value
        exchange = Exchange(send, headers, self._draining, secret)
        scope["path"] = _path(scope)
        scope["state"]["exchange"] = exchange
        exchange.record.client = address(scope.get("client"))
        exchange.record.user_agent = headers.get("user-agent", "")
        span = self._start_span(scope, headers)
        with (
            within(span),
            structlog.contextvars.bound_contextvars(request_id=exchange.request_id),
            self._in_flight(scope),
        ):
            _log.debug("request_started", method=scope["method"], route=route_of(scope["path"]))
            try:
                await self._serve(scope, receive, exchange)
            finally:
                self._record(scope, exchange)
                _end_span(span, scope, exchange)

    def _in_flight(self, scope: Scope) -> AbstractContextManager[object]:
        if _is_quiet(scope):
            return nullcontext()
        return self._metrics.in_flight.track_inprogress()

    async def _serve(self, scope: Scope, receive: Receive, exchange: "Exchange") -> None:
        try:
            await self._app(scope, receive, exchange.send)
        except ClientDisconnect:
            exchange.status = _CLIENT_CLOSED_REQUEST
            exchange.record.reason = _CLIENT_DISCONNECTED
        except Exception as error:
            if exchange.first_byte_s is not None:
                exchange.record.reason = "INTERNAL"
                raise
            answer = from_exception(error)
            exchange.record.fail(answer)
            response = json_response(answer.body, answer.status, answer.headers)
            await response(scope, receive, exchange.send)

    def _start_span(self, scope: Scope, headers: Headers) -> Span:
        tracer = OFF if _is_quiet(scope) else self._tracer
        parent = TraceContext.read(headers.items())
        return tracer.start(scope["method"], Kind.SERVER, parent, _request_attributes(scope))

    def _record(self, scope: Scope, exchange: "Exchange") -> None:
        route, record = route_of(scope["path"]), exchange.record
        fields = {
            "method": scope["method"],
            "route": route,
            "status": exchange.status,
            "duration_ms": milliseconds(exchange.elapsed_s()),
            **record.log_fields(),
        }
        if _is_quiet(scope):
            self._metrics.probes.labels(route, exchange.status).inc()
            _log.debug("request_finished", **fields)
            return
        self._count(route, exchange)
        if record.reason == "UNAUTHENTICATED":  # of which anybody can make any number
            self._limited_log.write(_log.info, "request_finished", kind=route, **fields)
        else:
            _log.info("request_finished", **fields)

    def _count(self, route: str, exchange: "Exchange") -> None:
        metrics, reason = self._metrics, exchange.record.reason
        model = metrics.models.of(exchange.record.model)
        metrics.requests.labels(route, model, exchange.status).inc()
        metrics.duration_s.labels(route, model).observe(exchange.elapsed_s())
        if exchange.first_byte_s is not None:
            metrics.first_byte_s.labels(route, model).observe(exchange.first_byte_s)
        if exchange.status == _CLIENT_CLOSED_REQUEST:
            metrics.disconnects.labels(route, model).inc()
        elif reason:
            metrics.failures.labels(route, model, reason).inc()


class Exchange:
    """One request, and its response on its way out; `record` is what the log will tell of it."""

    def __init__(
        self,
        send: Send,
        headers: Headers,
        draining: asyncio.Event,
        upstream_secret: str | None = None,
    ) -> None:
        self._send = send
        self._draining = draining
        self.record = RequestRecord()
        self._upstream_secret = upstream_secret
        self._sent_secret = _passable_secret(headers)
        self.caller: Caller | None = None  # known after authentication
        sent = _sent_id(headers)
        self._is_id_sent = bool(sent)
        self.request_id = sent or f"req_{uuid.uuid4().hex}"
        self._started_at_s = time.perf_counter()
        self.first_byte_s: float | None = None
        self.status = _CLIENT_CLOSED_REQUEST  # until a head is sent
        self.limits: Callable[[], Mapping[str, str]] = dict  # asked when the head is sent

    @property
    def call_metadata(self) -> CallMetadata:
        """The metadata of calls to services that this request makes."""
        own = self._upstream_secret
        return CallMetadata(
            self.request_id,
            secret=self._sent_secret if own is None else own,
            is_own_secret=own is not None,
            caller=None if self.caller is None else self.caller.info,
        )

    def suggest_id(self, request_id: str) -> None:
        """Take an id that stands in the body; one in a header comes before it."""
        if not self._is_id_sent:
            self.request_id = request_id
            structlog.contextvars.bind_contextvars(request_id=request_id)

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._started_at_s

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.first_byte_s = self.elapsed_s()
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers.update(self.limits())
            headers["openai-processing-ms"] = str(round(self.first_byte_s * 1000))
            if self._draining.is_set():
                # A request on a connection that is closed just then would be lost.
                headers["connection"] = "close"
        await self._send(message)


def _path(scope: Scope) -> str:
    """Without slashes that say nothing; one that is written as %2F says something."""
    raw: bytes = scope["raw_path"]
    return unquote("/" + "/".join(filter(None, raw.decode("ascii").split("/"))))


def _sent_id(headers: Headers) -> str:
    """The client's own, as far as it is fit for headers and logs; empty where it sent none."""
    for name in ("x-request-id", "x-client-request-id"):
        if sent := re.sub(r"[^\x21-\x7e]", "", headers.get(name, "")):
            return sent[:_MAX_REQUEST_ID]
    return ""


def _passable_secret(headers: Headers) -> str | None:
    """Return the caller's key, which the service checks; None without a key that metadata can hold.

    Of several keys it is the one that the gateway itself checks, so that nobody is admitted with
    one and known to the service by another.
    """
    secret = sent_secret(headers.items())
    return secret if secret and _PRINTABLE.fullmatch(secret) else None


def _is_quiet(scope: Scope) -> bool:
    return scope["path"] in _QUIET_ROUTES


def _request_attributes(scope: Scope) -> dict[str, Value]:
    """https://opentelemetry.io/docs/specs/semconv/http/http-spans/; the query is left out."""
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


def _end_span(span: Span, scope: Scope, exchange: Exchange) -> None:
    if span.is_recording:
        route = route_of(scope["path"])
        span.rename(f"{scope['method']} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": exchange.status})
        if exchange.status >= 500:
            span.fail(str(exchange.status))
    span.end()
