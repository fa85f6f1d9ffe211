"""Trace contexts, spans and their export to a collector."""

import socket
import subprocess
import sys
import threading

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from chatrpc_process.tracing.api import OFF, Kind, TraceContext, current, within
from chatrpc_process.tracing.exporter import make_tracer
from chatrpc_process.tracing.otel import OtelTracer
from tests.fakes.collector import collecting

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_context_is_read_and_written() -> None:
    fields = [("traceparent", PARENT), ("tracestate", "a=1,b=2")]
    context = TraceContext.read([("other", "x"), *fields, ("x-bin", b"\xff")])
    assert context == TraceContext(PARENT, "a=1,b=2")
    assert context.fields == fields
    assert context.trace_id == TRACE


def test_states_of_several_fields_are_joined() -> None:
    fields = [("tracestate", "a=1"), ("traceparent", PARENT), ("tracestate", "b=2")]
    assert TraceContext.read(fields) == TraceContext(PARENT, "a=1,b=2")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "nonsense",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}",
        PARENT + "\n",
    ],
)
def test_invalid_context_is_none(parent: str) -> None:
    assert TraceContext.read([("traceparent", parent)]) is None


def test_two_parents_are_no_context() -> None:
    assert TraceContext.read([("traceparent", PARENT)] * 2) is None


@pytest.mark.parametrize("state", ["a=1\r\nx: y", "ä=1", "a" * 513])
def test_state_that_is_invalid_in_a_header_is_dropped(state: str) -> None:
    read = TraceContext.read([("traceparent", PARENT), ("tracestate", state)])
    assert read == TraceContext(PARENT)


@given(st.lists(st.tuples(st.sampled_from(("traceparent", "tracestate")), st.text())))
def test_any_header_can_be_read(fields: list[tuple[str, str]]) -> None:
    context = TraceContext.read(fields)
    assert context is None or TraceContext.read(context.fields) == context


def test_context_is_forwarded_and_not_recorded_without_a_collector() -> None:
    span = make_tracer(None, "test").start("name", Kind.SERVER, TraceContext(PARENT, "a=1"))
    child = span.child("child", Kind.CLIENT)
    assert child.context == TraceContext(PARENT, "a=1")
    assert not child.is_recording
    assert OFF.start("name", Kind.SERVER, None).context is None


def test_log_lines_have_the_trace_id() -> None:
    span = OFF.start("name", Kind.SERVER, TraceContext(PARENT))
    with within(span):
        assert current() is span
        assert structlog.contextvars.get_contextvars()["trace_id"] == TRACE
    assert "trace_id" not in structlog.contextvars.get_contextvars()
    assert current().context is None


def test_collector_without_the_extra_is_rejected_with_its_name() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from chatrpc_process.errors import ConfigError
from chatrpc_process.tracing.exporter import make_tracer
try:
    make_tracer("http://localhost:4318", "test")
except ConfigError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("otlp_endpoint needs the extra chatrpc[otel]")


@pytest.mark.slow
def test_library_is_not_imported_without_a_collector() -> None:
    code = """
import sys
from chatrpc_process.tracing.exporter import make_tracer
import gateway_http.app, service.rpc.server
make_tracer(None, "test")
sys.exit(any(name.startswith("opentelemetry") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    with collecting() as collector:
        tracer = make_tracer(collector.url, "chatrpc-test")
        span = tracer.start("work", Kind.SERVER, TraceContext(PARENT), {"a": "b"})
        span.phase("part", 1_000, 2_000)
        span.fail("INTERNAL")
        span.end()
        tracer.close()
        [request] = collector.requests
    assert collector.paths == ["/v1/traces"]
    [of_resource] = request.resource_spans
    resource = {a.key: a.value.string_value for a in of_resource.resource.attributes}
    assert resource["service.name"] == "chatrpc-test"
    assert resource["deployment.environment.name"] == "test"
    part, work = of_resource.scope_spans[0].spans
    assert (part.name, part.start_time_unix_nano, part.end_time_unix_nano) == ("part", 1000, 2000)
    assert part.parent_span_id == work.span_id
    assert work.trace_id.hex() == part.trace_id.hex() == TRACE
    assert work.parent_span_id.hex() == SPAN
    assert {a.key: a.value.string_value for a in work.attributes} == {
        "a": "b",
        "error.type": "INTERNAL",
    }
    assert work.status.code == work.status.STATUS_CODE_ERROR


@pytest.mark.slow
def test_unresponsive_collector_delays_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")  # seconds
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        tracer = OtelTracer.exporting(f"http://127.0.0.1:{deaf.getsockname()[1]}", "test")
        for _ in range(3000):  # more than the capacity of the queue
            tracer.start("work", Kind.SERVER, None).end()
        tracer.close(0.05)
        # The export still runs: `close` has not waited for its end.
        exporting = [t for t in threading.enumerate() if "SpanRecordProcessor" in t.name]
        assert any(thread.is_alive() for thread in exporting)
    for thread in exporting:  # it ends after its own timeout
        thread.join(120)


def test_unsampled_span_is_not_recorded_and_not_sampled_downstream() -> None:
    with collecting() as collector:
        tracer = OtelTracer.exporting(collector.url, "test")
        span = tracer.start("work", Kind.SERVER, TraceContext(f"00-{TRACE}-{SPAN}-00"))
        child = span.child("child", Kind.CLIENT)
        assert not child.is_recording
        assert child.context is not None
        assert child.context.trace_id == TRACE
        assert child.context.traceparent.endswith("-00")
        child.end()
        span.end()
        tracer.close()
    assert not collector.requests
