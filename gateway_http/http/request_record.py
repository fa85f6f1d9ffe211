"""What the log and the metrics tell of HTTP requests, those included that are rejected early."""

import ssl
from dataclasses import dataclass, field
from typing import Any

import structlog

from chatrpc_process.logs.configuration import printable
from chatrpc_process.logs.limited import LimitedLog
from gateway_http.endpoints import UNMATCHED
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError

# These are the client's own words.
_MAX_NAME_CHARS = 200
# This one is gRPC's, with the addresses that were tried.
_MAX_CAUSE_CHARS = 300

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """What became of one request. Its handlers fill in what they know; times are in seconds."""

    client: str = ""
    user_agent: str = ""
    model: str = ""  # as the client names it
    is_streamed: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    reason: str = ""  # of a failure
    param: str = ""  # the parameter to blame
    cause: str = ""  # what gRPC says of a service that cannot be called

    def fail(self, error: ApiError) -> None:
        """Note why the request failed, but not the message: it may quote the request."""
        self.reason = error.reason
        self.param = error.body.error.param or ""
        self.cause = error.cause

    def log_fields(self) -> dict[str, Any]:
        """Return what is known. No part of a prompt or a completion is among it."""
        first_token_ms = None if self.first_token_s is None else milliseconds(self.first_token_s)
        fields = {
            "client": self.client,
            "user_agent": printable(self.user_agent, _MAX_NAME_CHARS),
            "model": printable(self.model, _MAX_NAME_CHARS),
            "is_streamed": self.is_streamed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cached_tokens": self.cached_tokens,
            "ttft_ms": first_token_ms,
            "finish_reasons": self.finish_reasons,
            "reason": self.reason,
            "field": printable(self.param, _MAX_NAME_CHARS),
            "cause": printable(self.cause, _MAX_CAUSE_CHARS),
        }
        return {name: value for name, value in fields.items() if value not in (None, "", [])}


class EarlyRejections:
    """Counts and logs what never reaches the application: connections, handshakes, heads.

    Clients can make any number of these without a key, so lines alike are limited.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limited_log = LimitedLog()

    def note_rejected(self, status: int, reason: str, client: str) -> None:
        """A request was answered with an error before it was complete."""
        self._metrics.requests.labels(UNMATCHED, "", status).inc()
        self._metrics.failures.labels(UNMATCHED, "", reason).inc()
        fields = {"status": status, "reason": reason, "client": client}
        self._limited_log.write(_log.info, "request_rejected", kind=reason, **fields)

    def note_cut(self, reason: str, client: str) -> None:
        """A connection was closed without a response, or in the middle of one."""
        self.count_cut(reason)
        fields = {"reason": reason, "client": client}
        self._limited_log.write(_log.info, "connection_cut", kind=reason, **fields)

    def count_cut(self, reason: str) -> None:
        """As `note_cut`, for a connection whose request is rejected with a log line of its own."""
        self._metrics.cut_connections.labels(reason).inc()

    def note_failed_handshake(self, error: ssl.SSLError) -> None:
        """A client and the gateway did not agree on TLS. The client's address is not known here."""
        self._metrics.tls_handshake_failures.inc()
        reason = error.reason or type(error).__name__
        self._limited_log.write(_log.info, "tls_handshake_failed", kind=reason, reason=reason)


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def address(client: tuple[str, int] | None) -> str:
    """Return `127.0.0.1:4711` or `[::1]:4711`; "" where it is not known."""
    if client is None:
        return ""
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
