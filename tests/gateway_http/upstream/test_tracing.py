"""A trace that contains spans of the gateway and of the service."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from chatrpc_process.tracing.otel import OtelTracer
from tests.fakes.chat_service import FakeService, Hold
from tests.fakes.wait import until
from tests.support.gateway import checking_service, serving

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
BODY: dict[str, Any] = {
    "model": "fake",
    "messages": [{"role": "user", "content": "a secret"}],
    "temperature": 0.5,
    "max_completion_tokens": 9,
    "stop": ["another secret"],
}
CHAT = "chatrpc.v1.ChatService"
PHASES = ["engine.queue", "engine.prefill", "engine.decode"]


class Traces:
    """The spans that both processes have recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.tracer = OtelTracer(SimpleSpanProcessor(self._exporter), "test")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    async def ended(self, root: str) -> dict[str, ReadableSpan]:
        """Return all spans by kind and name, once both processes have recorded theirs."""

        def names() -> list[str]:
            return [f"{span.kind.name} {span.name}" for span in self.spans]

        await until(lambda: root in names() and any("SERVER chatrpc" in name for name in names()))
        return dict(zip(names(), self.spans, strict=True))


@pytest.fixture
def traces() -> Traces:
    return Traces()


@pytest.fixture
async def http(traces: Traces) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        checking_service(traces.tracer) as target,
        serving(tracer=traces.tracer, upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        yield http


def attributes_of(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return int(span.parent.span_id)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return format(span.context.trace_id, "032x")


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_request_is_one_trace(
    http: httpx.AsyncClient, traces: Traces, is_streamed: bool
) -> None:
    path = "/v1/chat/completions"
    answer = await http.post(path, json={**BODY, "stream": is_streamed}, headers=PARENT)
    assert answer.status_code == 200
    spans = await traces.ended(f"SERVER POST {path}")
    method = f"{CHAT}/{'Stream' if is_streamed else 'Create'}ChatCompletion"
    root, call = spans[f"SERVER POST {path}"], spans[f"CLIENT {method}"]
    served = spans[f"SERVER {method}"]
    assert format(parent_of(root), "016x") == SPAN
    assert parent_of(call) == id_of(root)
    assert parent_of(served) == id_of(call)
    phases = [spans[f"INTERNAL {name}"] for name in PHASES]
    assert {parent_of(phase) for phase in phases} == {id_of(served)}
    assert {trace_of(span) for span in spans.values()} == {TRACE}
    assert served.context
    assert served.context.trace_state.to_header() == "vendor=1"
    assert served.start_time is not None
    assert served.end_time is not None
    for phase in phases:
        assert phase.start_time is not None
        assert phase.end_time is not None
        # Phases and spans are measured with different clocks.
        assert served.start_time - 1e9 < phase.start_time <= phase.end_time < served.end_time + 1e9


async def test_trace_has_parameters_and_outcome_but_no_text(
    http: httpx.AsyncClient, traces: Traces
) -> None:
    path = "/v1/chat/completions"
    sent = await http.post(path, json={**BODY, "stream": True}, params={"a": "b"})
    spans = await traces.ended(f"SERVER POST {path}")
    root = attributes_of(spans[f"SERVER POST {path}"])
    assert root["http.request.method"] == "POST"
    assert root["http.route"] == root["url.path"] == path
    assert root["http.response.status_code"] == 200
    assert root["server.address"] == "127.0.0.1"
    call = attributes_of(spans[f"CLIENT {CHAT}/StreamChatCompletion"])
    assert call["rpc.response.status_code"] == "OK"
    assert call["gen_ai.request.model"] == "fake"
    served = attributes_of(spans[f"SERVER {CHAT}/StreamChatCompletion"])
    assert served["network.peer.address"] == "127.0.0.1"
    assert served.pop("network.peer.port") > 0
    assert served.pop("gen_ai.response.time_to_first_chunk") > 0
    assert served.pop("gen_ai.response.id") in sent.text
    assert served == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{CHAT}/StreamChatCompletion",
        "rpc.response.status_code": "OK",
        "network.peer.address": "127.0.0.1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "chatrpc",
        "gen_ai.request.model": "fake",
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.model": "fake",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": len("<user>a secret<assistant>"),
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.usage.reasoning.output_tokens": 0,
    }
    assert "secret" not in "".join(span.to_json() for span in spans.values())


async def test_text_completion_has_its_operation_name(
    http: httpx.AsyncClient, traces: Traces
) -> None:
    body = {"model": "fake", "prompt": ["a", "b"], "max_tokens": 3}
    assert (await http.post("/v1/completions", json=body)).status_code == 200
    spans = await traces.ended("SERVER POST /v1/completions")
    served = spans["SERVER chatrpc.v1.CompletionService/CreateCompletion"]
    assert attributes_of(served)["gen_ai.operation.name"] == "text_completion"
    assert attributes_of(served)["gen_ai.response.finish_reasons"] == ("length", "length")
    assert attributes_of(served)["gen_ai.usage.output_tokens"] == 4
    assert f"INTERNAL {PHASES[-1]}" in spans  # one span for both prompts together


async def test_embeddings_have_a_span_with_their_tokens(
    http: httpx.AsyncClient, traces: Traces
) -> None:
    body = {"model": "fake", "input": ["a", "secret"], "dimensions": 2}
    assert (await http.post("/v1/embeddings", json=body)).status_code == 200
    spans = await traces.ended("SERVER POST /v1/embeddings")
    name = "chatrpc.v1.EmbeddingService/CreateEmbeddings"
    called, served = attributes_of(spans[f"CLIENT {name}"]), attributes_of(spans[f"SERVER {name}"])
    request = {
        "gen_ai.operation.name": "embeddings",
        "gen_ai.provider.name": "chatrpc",
        "gen_ai.request.model": "fake",
    }
    assert {key: value for key, value in called.items() if key.startswith("gen_ai.")} == request
    assert {key: value for key, value in served.items() if key.startswith("gen_ai.")} == request | {
        "gen_ai.embeddings.dimension.count": 2,
        "gen_ai.response.model": "fake",
        "gen_ai.usage.input_tokens": 7,
    }
    assert "secret" not in "".join(span.to_json() for span in spans.values())


async def test_rejection_is_no_error_of_the_server(http: httpx.AsyncClient, traces: Traces) -> None:
    answer = await http.post("/v1/chat/completions", json={**BODY, "model": "nobody"})
    assert answer.status_code == 404
    spans = await traces.ended("SERVER POST /v1/chat/completions")
    served = spans[f"SERVER {CHAT}/CreateChatCompletion"]
    assert attributes_of(served)["rpc.response.status_code"] == "NOT_FOUND"
    assert attributes_of(served)["chatrpc.error.reason"] == "MODEL_NOT_FOUND"
    assert served.status.status_code is StatusCode.UNSET
    call = spans[f"CLIENT {CHAT}/CreateChatCompletion"]
    assert call.status.status_code is StatusCode.ERROR
    assert attributes_of(call)["error.type"] == "NOT_FOUND"
    assert spans["SERVER POST /v1/chat/completions"].status.status_code is StatusCode.UNSET


async def test_unreachable_service_is_an_error(traces: Traces) -> None:
    async with (
        serving(tracer=traces.tracer, upstream="127.0.0.1:1") as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        assert (await http.get("/v1/models")).status_code == 503
    call, root = traces.spans
    assert (
        attributes_of(call)["error.type"]
        == attributes_of(call)["rpc.response.status_code"]
        == "UNAVAILABLE"
    )
    assert attributes_of(root)["error.type"] == "503"
    assert root.status.status_code is StatusCode.ERROR


async def test_client_that_disconnects_is_no_error(traces: Traces, service: FakeService) -> None:
    service.script = [Hold()]
    async with (
        serving(tracer=traces.tracer, upstream=service.target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        asking = asyncio.ensure_future(http.post("/v1/chat/completions", json=BODY))
        await service.called()
        asking.cancel()
        await service.cancelled()
        await until(lambda: len(traces.spans) == 2)
    call, root = traces.spans
    assert attributes_of(call)["rpc.response.status_code"] == "CANCELLED"
    assert attributes_of(root)["http.response.status_code"] == 499
    assert {s.status.status_code for s in (call, root)} == {StatusCode.UNSET}


async def test_unsampled_trace_is_not_recorded(http: httpx.AsyncClient, traces: Traces) -> None:
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    await http.post("/v1/chat/completions", json=BODY, headers=unsampled)
    await http.post("/v1/chat/completions", json=BODY)  # recorded by default
    spans = await traces.ended("SERVER POST /v1/chat/completions")
    assert TRACE not in {trace_of(span) for span in spans.values()}


async def test_probes_are_not_traced(http: httpx.AsyncClient, traces: Traces) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        await http.get(path, headers=PARENT)
    assert not traces.spans


@pytest.mark.parametrize("headers", [PARENT, {"traceparent": PARENT["traceparent"]}, {}])
async def test_trace_context_is_passed_on_without_recording(
    service: FakeService, headers: dict[str, str], body: dict[str, Any]
) -> None:
    async with serving(upstream=service.target) as url, httpx.AsyncClient(base_url=url) as http:
        await http.post("/v1/chat/completions", json=body, headers=headers)
    [call] = service.calls
    passed_on = {name: call.metadata.get(name) for name in PARENT}
    assert passed_on == {name: headers.get(name) for name in PARENT}
