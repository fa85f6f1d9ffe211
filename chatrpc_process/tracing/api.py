"""Trace contexts and spans.

A client's trace context (W3C Trace Context) is forwarded whether or not spans are recorded. Spans
are recorded by `chatrpc_process.tracing.otel`, which needs the extra `otel`. Spans of `OFF` have
only the context, and take almost no time.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

import structlog

# https://www.w3.org/TR/trace-context/#traceparent-header: version ff and ids of zeros are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")

Value = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Value]
NOTHING: Attributes = {}


class Kind(Enum):
    """The role of a span's process in a call. INTERNAL means that the span is not a call."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """The identity of a span, which is sent in HTTP headers and gRPC metadata."""

    traceparent: str
    tracestate: str = ""

    @classmethod
    def read(cls, fields: Iterable[tuple[str, str | bytes]]) -> Self | None:
        """Read the context from headers or metadata, whose names are in lower case.

        Returns None if there is no valid `traceparent`.
        """
        found = dict[str, str]()
        for name, value in fields:
            if name in ("traceparent", "tracestate") and isinstance(value, str):
                # A list may be split over several fields. Two parents are joined to an invalid one.
                before = found.get(name)
                found[name] = value if before is None else f"{before},{value}"
        parent, state = found.get("traceparent", ""), found.get("tracestate", "")
        if not _TRACEPARENT.fullmatch(parent):
            return None
        return cls(parent, state if _TRACESTATE.fullmatch(state) else "")

    @property
    def trace_id(self) -> str:
        return self.traceparent[3:35]

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The headers or metadata that contain this context."""
        state = [("tracestate", self.tracestate)] if self.tracestate else []
        return [("traceparent", self.traceparent), *state]


class Span(Protocol):
    """A piece of work in a trace. The code that starts it calls `end` once."""

    @property
    def context(self) -> TraceContext | None:
        """The context to send with calls that belong to this span."""
        ...

    @property
    def is_recording(self) -> bool:
        """True if attributes of this span are exported."""
        ...

    def rename(self, name: str) -> None: ...

    def set_attributes(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None:
        """Mark the span as an error of this type. No message is added: it may quote a client."""
        ...

    def child(self, name: str, kind: Kind, attributes: Attributes = NOTHING) -> "Span": ...

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes = NOTHING
    ) -> None:
        """Add a child span that has ended already. Times are Unix times in nanoseconds."""
        ...

    def end(self) -> None: ...


class Unrecorded:
    """A span that is not exported and only has a context."""

    def __init__(self, context: TraceContext | None = None) -> None:
        self.context = context
        self.is_recording = False

    def rename(self, name: str) -> None: ...

    def set_attributes(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def child(self, name: str, kind: Kind, attributes: Attributes = NOTHING) -> Span:  # noqa: ARG002
        return self

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes = NOTHING
    ) -> None: ...

    def end(self) -> None: ...


class Tracer(Protocol):
    """Starts spans and exports them."""

    def start(
        self, name: str, kind: Kind, parent: TraceContext | None, attributes: Attributes = NOTHING
    ) -> Span:
        """Start a span as a child of the client's span `parent`, or a new trace if it is None."""
        ...

    def close(self) -> None:
        """Export the remaining spans. Those that are not exported in a few seconds are dropped."""
        ...


class _Off:
    """Starts spans that are not exported."""

    def start(
        self,
        name: str,  # noqa: ARG002
        kind: Kind,  # noqa: ARG002
        parent: TraceContext | None,
        attributes: Attributes = NOTHING,  # noqa: ARG002
    ) -> Span:
        return Unrecorded(parent)

    def close(self) -> None: ...


OFF: Tracer = _Off()
_NO_SPAN: Span = Unrecorded()
_current: ContextVar[Span] = ContextVar("chatrpc_span", default=_NO_SPAN)


def current() -> Span:
    """Return the span that the current task belongs to."""
    return _current.get()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """While in the context, make `span` the current one and add its trace id to log lines."""
    token = _current.set(span)
    try:
        with structlog.contextvars.bound_contextvars(**log_fields(span)):
            yield
    finally:
        _current.reset(token)


def log_fields(span: Span) -> dict[str, str]:
    """Return the fields of log lines that belong to `span`."""
    return {} if span.context is None else {"trace_id": span.context.trace_id}
