"""Spans of OpenTelemetry's SDK, exported over OTLP. This needs the extra `otel`.

The SDK's environment variables apply: OTEL_TRACES_SAMPLER, OTEL_RESOURCE_ATTRIBUTES,
OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS, OTEL_BSP_* and others.
"""

import threading
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from chatrpc_process.tracing.api import NOTHING, Attributes, Kind, Span, TraceContext

_PATH = "/v1/traces"
# The maximum time by which a collector that does not respond delays the end of the process.
_EXPORT_TIMEOUT_S = 3.0
_KINDS = {
    Kind.INTERNAL: SpanKind.INTERNAL,
    Kind.SERVER: SpanKind.SERVER,
    Kind.CLIENT: SpanKind.CLIENT,
}


class OtelTracer:
    """A tracer that records the sampled spans.

    By default these are the children of sampled parents and all spans without a parent. The
    environment variable OTEL_TRACES_SAMPLER changes that.

    Args:
        processor: Receives spans that have ended.
    """

    def __init__(self, processor: SpanProcessor, service_name: str) -> None:
        ours = {"service.name": service_name, "service.version": version("chatrpc")}
        resource = Resource.create(dict(ours)).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("chatrpc", version("chatrpc"))

    @classmethod
    def exporting(cls, endpoint: str, service_name: str) -> "OtelTracer":
        """Return a tracer that exports to the collector with the base URL `endpoint`.

        A thread sends batches from a bounded queue. If the collector is slow or unreachable, spans
        are dropped and requests do not wait.
        """
        url = endpoint.rstrip("/")
        exporter = OTLPSpanExporter(url if url.endswith(_PATH) else url + _PATH)
        return cls(BatchSpanProcessor(exporter), service_name)

    def start(
        self, name: str, kind: Kind, parent: TraceContext | None, attributes: Attributes = NOTHING
    ) -> Span:
        context = trace.set_span_in_context(
            trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT if parent is None else _read(parent))
        )
        span = self._tracer.start_span(name, context, _KINDS[kind], dict(attributes))
        return OtelSpan(self._tracer, span)

    def close(self, timeout_s: float = _EXPORT_TIMEOUT_S) -> None:
        # The SDK's own limit is 30 s.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(timeout_s)


class OtelSpan:
    """A `chatrpc_process.tracing.api.Span` that wraps a span of OpenTelemetry."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self._span = span
        self.context: TraceContext | None = _write(span.get_span_context())
        self.is_recording = span.is_recording()

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def set_attributes(self, attributes: Attributes) -> None:
        self._span.set_attributes(dict(attributes))

    def fail(self, error_type: str) -> None:
        self._span.set_attribute("error.type", error_type)
        self._span.set_status(Status(StatusCode.ERROR))

    def child(self, name: str, kind: Kind, attributes: Attributes = NOTHING) -> Span:
        span = self._tracer.start_span(name, self._within, _KINDS[kind], dict(attributes))
        return OtelSpan(self._tracer, span)

    def phase(
        self, name: str, start_ns: int, end_ns: int, attributes: Attributes = NOTHING
    ) -> None:
        span = self._tracer.start_span(
            name, self._within, attributes=dict(attributes), start_time=start_ns
        )
        span.end(end_ns)

    def end(self) -> None:
        self._span.end()

    @property
    def _within(self) -> Context:
        return trace.set_span_in_context(self._span)


def _read(context: TraceContext) -> SpanContext:
    _, trace_id, span_id, flags = context.traceparent.split("-")
    return SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([context.tracestate]),
    )


def _write(context: SpanContext) -> TraceContext:
    trace_id = trace.format_trace_id(context.trace_id)
    span_id = trace.format_span_id(context.span_id)
    flags = f"{context.trace_flags & TraceFlags.SAMPLED:02x}"
    return TraceContext(f"00-{trace_id}-{span_id}-{flags}", context.trace_state.to_header())
