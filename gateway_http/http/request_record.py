"""The log line of a request, and the logs and metrics of requests that are rejected early."""

import ssl
from dataclasses import dataclass, field
from typing import Any

import structlog

from chatrpc_process.logs.configuration import printable
from chatrpc_process.logs.limited import LimitedLog
from gateway_http.http.endpoint import UNMATCHED
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError

# Maximum length of names in the log. Names come from the client.
_MAX_NAME_CHARS = 200
# Maximum length of causes in the log. They come from gRPC and contain all addresses that it tried.
_MAX_CAUSE_CHARS = 300

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RequestRecord:
    """The facts of one request that its log line and metrics report. Handlers fill them in.

    Attributes:
        model: The name of the model in the request.
        first_token_s: The time in seconds from the request to the first token of a stream.
        reason: The reason of a failure.
        param: The parameter that the failure is about.
        cause: gRPC's message about a service that cannot be called.
    """

    client: str = ""
    user_agent: str = ""
    model: str = ""
    is_streamed: bool | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    first_token_s: float | None = None
    finish_reasons: list[str] = field(default_factory=list)
    reason: str = ""
    param: str = ""
    cause: str = ""

    def fail(self, error: ApiError) -> None:
        """Record why the request failed. The message is left out: it may quote the request."""
        self.reason = error.reason
        self.param = error.body.error.param or ""
        self.cause = error.cause

    def log_fields(self) -> dict[str, Any]:
        """Return the known fields. No field contains a part of a prompt or a completion."""
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
    """Counts and logs connections, TLS handshakes and heads that the application never gets.

    Clients can cause any number of these without a key, so the number of log lines is limited.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limited_log = LimitedLog()

    def note_rejected(self, status: int, reason: str, client: str) -> None:
        """Record a request that got an error response before it was complete."""
        self._metrics.requests.labels(UNMATCHED, "", status).inc()
        self._metrics.failures.labels(UNMATCHED, "", reason).inc()
        fields = {"status": status, "reason": reason, "client": client}
        self._limited_log.write(_log.info, "request_rejected", kind=reason, **fields)

    def note_cut(self, reason: str, client: str) -> None:
        """Record a connection that was closed without a response, or during a response."""
        self.count_cut(reason)
        fields = {"reason": reason, "client": client}
        self._limited_log.write(_log.info, "connection_cut", kind=reason, **fields)

    def count_cut(self, reason: str) -> None:
        """Count a closed connection whose request has a log line of its own."""
        self._metrics.cut_connections.labels(reason).inc()

    def note_failed_handshake(self, error: ssl.SSLError) -> None:
        """Record a TLS handshake that failed. The client's address is not known here."""
        self._metrics.tls_handshake_failures.inc()
        reason = error.reason or type(error).__name__
        self._limited_log.write(_log.info, "tls_handshake_failed", kind=reason, reason=reason)


def milliseconds(seconds: float) -> float:
    """Return a time in milliseconds, rounded for log lines."""
    return round(seconds * 1000, 1)


def address(client: tuple[str, int] | None) -> str:
    """Return an address such as `127.0.0.1:4711` or `[::1]:4711`; "" if it is unknown."""
    if client is None:
        return ""
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
