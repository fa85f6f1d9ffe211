"""Clocks that jump, and a process that is stopped for a while, which to it is the same."""

import ast
import asyncio
import signal

import pytest

from tests.faults.conftest import Launch
from tests.faults.program import Client, Gateway, Program, Service, body
from tests.gateway_http.raw_http import RawClient
from tests.test_floors import ROOT, sources

# What reads the clock on the wall, which is set and jumps: only what tells somebody the date.
WALL_CLOCK = {
    ("chatrpc_process.tls", "time.time"),  # whether a certificate is valid today
    ("chatrpc_process.files.watched", "time.time"),  # when a file was read, as a metric
    ("service.rpc.encode.chat", "time.time"),  # `create_time` of an answer
    ("service.rpc.encode.completion", "time.time"),
    ("service.rpc.calls.engine_timings", "time.time_ns"),  # when the spans of a trace began
    ("service.text.jinja_template", "datetime.now"),  # templates may ask for the date
    ("bench.contest", "datetime.now"),  # when it was measured
}
_WALL_CLOCKS = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "ctime"}
_MODULES = {"time", "datetime", "date"}


@pytest.mark.parametrize(("module", "path"), sorted(sources()))
def test_durations_are_not_measured_by_the_clock_on_the_wall(module: str, path: object) -> None:
    tree = ast.parse((ROOT / str(path)).read_text())
    read = {
        (module, f"{node.value.id}.{node.attr}")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in _MODULES
        and node.attr in _WALL_CLOCKS
    }
    assert read <= WALL_CLOCK
    by_name = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    }
    assert not by_name & _WALL_CLOCKS, "import time, and say time.time()"


@pytest.mark.parametrize("stopped", ["service", "gateway"])
async def test_a_process_that_is_stopped_for_a_while_goes_on_where_it_was(
    launch: Launch, stopped: str
) -> None:
    """For longer than a step may take, and than events may be apart."""
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
        await asyncio.sleep(2)  # it is the time itself that is tested
        program.send(signal.SIGCONT)
        last = [response async for response in responses][-1]
        assert last.chunk.usage.completion_tokens == num_tokens
        told = await http.read_until(b"[DONE]")
        assert b'"finish_reason":"length"' in told
        assert b'"error"' not in told
        assert (await client.create()).completion.usage.completion_tokens == 3
    assert service.is_running
    assert gateway.is_running
    await service.idle()
