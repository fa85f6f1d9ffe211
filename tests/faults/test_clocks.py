"""Clocks that jump, and processes that are stopped for a while, which has the same effect."""

import ast
import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import Client, Gateway, Launch, Program, Service, body
from tests.support.raw_http import RawClient
from tests.support.sources import parse, sources

# The only readers of the wall clock, which may jump. All of them report a date.
WALL_CLOCK = {
    ("chatrpc_process.tls", "time.time"),  # whether a certificate is valid today
    ("chatrpc_process.files.watched", "time.time"),  # when a file was read, as a metric
    ("service.rpc.encode.chat", "time.time"),  # `create_time` of a completion
    ("service.rpc.encode.completion", "time.time"),
    ("service.rpc.calls.engine_timings", "time.time_ns"),  # when the spans of a trace began
    ("service.text.jinja_template", "datetime.now"),  # templates may ask for the date
    ("service.upstream.runtime", "time.time"),  # when a model was created
    ("service.upstream.failures", "time.time"),  # `Retry-After` may be a date
    ("service.vllm_protocol.model_info", "datetime.now"),  # when a load was read
    ("service.engine.block_files", "time.time_ns"),  # when a file was used last
    ("service.engine.disk_cache", "time.time_ns"),
    ("gateway_http.convert.classification", "time.time"),  # `created` of scores
    ("gateway_http.convert.responses_output", "time.time"),  # `completed_at` of a response
    ("gateway_http.response_store", "time.time"),  # when a response was used last
    ("bench.contest", "datetime.now"),  # when it was measured
    ("bench.results", "datetime.now"),
    ("bench.gpu", "time.gmtime"),
}
_WALL_CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
_MODULES = {"time", "datetime", "date"}


def _wall_clock_reads(path: Path) -> Iterator[str]:
    """Yield the calls of a source file that read the wall clock, for example `time.time`."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in _MODULES and node.attr in _WALL_CLOCKS:
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not {alias.name for alias in node.names} & _WALL_CLOCKS, "import time instead"


def test_wall_clock_is_read_only_for_dates() -> None:
    read = {(module, name) for module, path in sources() for name in _wall_clock_reads(path)}
    assert read <= WALL_CLOCK


@pytest.mark.slow
@pytest.mark.parametrize("stopped", ["service", "gateway"])
async def test_stopped_process_continues_its_streams(launch: Launch, stopped: str) -> None:
    """The pause is longer than the limits of a step and of the time between events."""
    service = await launch(Service("--step-timeout-s", "1", step_s=0.02)).ready()
    gateway = await launch(Gateway("--sse-ping-interval-s", "0.5", upstream=service.target)).ready()
    program: Program = service if stopped == "service" else gateway
    num_tokens = 150
    async with Client(service.target) as client, RawClient(gateway.url) as http:
        await http.post(body(num_tokens=num_tokens, stream=True))
        await http.read_until(b'"content":"a')
        stream = client.stream(num_tokens=num_tokens)
        responses = aiter(stream)
        await anext(responses)
        program.send(signal.SIGSTOP)
        await asyncio.sleep(2)  # the test is about this duration
        program.send(signal.SIGCONT)
        last = [response async for response in responses][-1]
        assert last.chunk.usage.completion_tokens == num_tokens
        events = await http.read_until(b"[DONE]")
        assert b'"finish_reason":"length"' in events
        assert b'"error"' not in events
        assert (await client.create()).completion.usage.completion_tokens == 3
    assert service.is_running
    assert gateway.is_running
    await service.idle()
