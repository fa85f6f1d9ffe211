"""Traces: which one a request belongs to, and what is told of it.

A caller's trace context is passed on whether or not anything is recorded (W3C Trace Context). Spans
are recorded by `chatrpc_process.tracing.otel`, which needs the extra `otel`; without it they cost
next to nothing: those of `OFF` only hold the context.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, Self

import structlog

from chatrpc_process.errors import ConfigError

# https://www.w3.org/TR/trace-context/#traceparent-header: version ff and ids of zeros are invalid.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_TRACESTATE = re.compile(r"[\x20-\x7e]{1,512}")

Value = str | bool | int | float | tuple[str, ...]
Attributes = Mapping[str, Value]
NOTHING: Attributes = {}


class Kind(Enum):
    """A span's part in a call, if it is one."""

    INTERNAL = "internal"
    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A place in a trace, as it travels in headers and metadata."""

    traceparent: str
    tracestate: str = ""

    @classmethod
    def read(cls, fields: Iterable[tuple[str, str | bytes]]) -> Self | None:
        """From headers or metadata, names in lower case; None without a valid `traceparent`."""
        found = dict[str, str]()
        for name, value in fields:
            if name in ("traceparent", "tracestate") and isinstance(value, str):
                # A list may come in several fields; of two parents none can be right.
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
        state = [("tracestate", self.tracestate)] if self.tracestate else []
        return [("traceparent", self.traceparent), *state]


class Span(Protocol):
    """A piece of work. Whoever has started it ends it, once."""

    @property
    def context(self) -> TraceContext | None:
        """What goes along with calls made in it."""
        ...

    @property
    def is_recording(self) -> bool:
        """Whether anything told to it is kept."""
        ...

    def rename(self, name: str) -> None: ...

    def tell(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None:
        """It is an error, of this kind. No words: they might be the caller's."""
        ...

    def child(self, name: str, kind: Kind, attributes: Attributes = NOTHING) -> "Span": ...

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes = NOTHING
    ) -> None:
        """A child that is over already; Unix times."""
        ...

    def end(self) -> None: ...


class Unrecorded:
    """A span of which nothing is kept but where it stands."""

    def __init__(self, context: TraceContext | None = None) -> None:
        self.context = context
        self.is_recording = False

    def rename(self, name: str) -> None: ...

    def tell(self, attributes: Attributes) -> None: ...

    def fail(self, error_type: str) -> None: ...

    def child(self, name: str, kind: Kind, attributes: Attributes = NOTHING) -> Span:  # noqa: ARG002
        return self

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes = NOTHING
    ) -> None: ...

    def end(self) -> None: ...


class Tracer(Protocol):
    """Where spans begin."""

    def start(
        self, name: str, kind: Kind, parent: TraceContext | None, attributes: Attributes = NOTHING
    ) -> Span:
        """A span that somebody else's work, `parent`, has led to; None: nobody's."""
        ...

    def close(self) -> None:
        """Let go of what is not exported yet, after a short while; blocks for so long at most."""
        ...


class _Off:
    """Keeps nothing."""

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


def make_tracer(endpoint: str | None, service_name: str) -> Tracer:
    """One that exports to the collector at `endpoint`; None: one that records nothing.

    Raises:
        ConfigError: what it takes is not installed.
    """
    if endpoint is None:
        return OFF
    try:
        from chatrpc_process.tracing.otel import OtelTracer  # noqa: PLC0415  # an extra, and slow to import
    except ImportError as error:
        raise ConfigError(
            f"otlp_endpoint needs the extra chatrpc[otel], which is not installed: {error}"
        ) from None
    return OtelTracer.exporting(endpoint, service_name)


def current() -> Span:
    """The span that this task's work belongs to."""
    return _current.get()


@contextmanager
def within(span: Span) -> Iterator[None]:
    """What is done in here belongs to `span`, and log lines say which trace that is of."""
    token = _current.set(span)
    try:
        with structlog.contextvars.bound_contextvars(**log_fields(span)):
            yield
    finally:
        _current.reset(token)


def log_fields(span: Span) -> dict[str, str]:
    """What a log line says of the trace it belongs to."""
    return {} if span.context is None else {"trace_id": span.context.trace_id}
