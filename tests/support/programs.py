"""The service and the gateway as processes that a test may limit, stop and kill."""

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, Self, TypeVar

import grpc
import httpx
import psutil
from grpc_health.v1 import health_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from chatrpc.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    completion_service_pb2_grpc,
    model_service_pb2_grpc,
)
from tests.fakes.wait import failsafe, until
from tests.support.grpc_server import params

# Root may write everywhere, unless PR_CAPBSET_DROP (24) removes CAP_DAC_OVERRIDE (1).
_WITHOUT_PRIVILEGES = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Program:
    """A process whose log a thread reads. It does not depend on an event loop.

    Args:
        prefix: A command that runs the rest of its words, in place of itself.
    """

    def __init__(
        self,
        module: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        is_privileged: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        command = [*prefix, sys.executable, "-m", module, "--log-format", "json", *options]
        if not is_privileged:
            command = [sys.executable, "-c", _WITHOUT_PRIVILEGES, *command]
        self._popen = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.process = psutil.Process(self._popen.pid)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def is_running(self) -> bool:
        return self._popen.poll() is None

    @property
    def num_fds(self) -> int:
        return int(self.process.num_fds())

    async def has_fds(self, at_most: int) -> None:
        """Wait until at most this many files and connections are open."""

        def is_reached() -> bool:
            gc.collect()  # a grpc.aio call that is still referenced keeps its connection
            return self.num_fds <= at_most

        await until(is_reached)

    @property
    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    def events(self, event: str) -> list[dict[str, Any]]:
        """Return the lines of this event that have been logged so far."""
        entries = (json.loads(line) for line in list(self.lines) if line.startswith("{"))
        return [entry for entry in entries if entry["event"] == event]

    async def logged(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait for the line number `count` of this event, and return it."""
        await until(lambda: len(self.events(event)) >= count or not self._reader.is_alive())
        found = self.events(event)
        assert len(found) >= count, f"no {event!r} in the log:\n{self.log}"
        return found[count - 1]

    async def ended(self) -> int:
        """Wait until the process has ended and its log has been read. Return the exit code."""
        await until(lambda: not self.is_running and not self._reader.is_alive())
        return self._popen.wait()

    def send(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    def close(self) -> None:
        self._popen.kill()  # SIGKILL ends a stopped process too
        self._popen.wait()
        self._reader.join()
        if self._popen.stderr is not None:
            self._popen.stderr.close()

    def _read(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self.lines.append(line)


_Program = TypeVar("_Program", bound=Program)


class Launch(Protocol):
    """Starts a process that ends with the test: `await launch(Service()).ready()`."""

    def __call__(self, program: _Program, /) -> _Program: ...


@contextmanager
def launching() -> Iterator[Launch]:
    """Yield a function that registers processes. They end with the context.

    Their logs are written to stderr, which pytest shows if the test has failed.
    """
    launched: list[Program] = []

    def launch(program: _Program) -> _Program:
        launched.append(program)
        return program

    try:
        yield launch
    finally:
        for program in launched:
            program.close()
            sys.stderr.write(program.log)


class RealService(Program):
    """`python -m service`."""

    module = "service"

    def __init__(
        self,
        *options: str,
        port: int = 0,
        env: Mapping[str, str] | None = None,
        is_privileged: bool = True,
        prefix: Sequence[str] = (),
    ) -> None:
        given = "--port", str(port), "--metrics-port", "0", *options
        super().__init__(self.module, *given, env=env, is_privileged=is_privileged, prefix=prefix)
        self.port = port

    async def ready(self) -> Self:
        self.port = (await self.logged("listening"))["port"]
        self._metrics_port = (await self.logged("listening_for_metrics"))["port"]
        await self.logged("ready")
        return self

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def metrics(self) -> dict[str, float]:
        """Return the value of each metric by name: the sum over its labels."""
        return await _metrics(f"http://127.0.0.1:{self._metrics_port}/metrics")

    async def is_idle(self) -> bool:
        counted = await self.metrics()
        held = ("sequences_running", "sequences_waiting", "kv_cache_usage_ratio")
        num_started = counted.get("grpc_server_started_total", 0)
        return num_started == counted.get("grpc_server_handled_total", 0) and not any(
            counted[f"chatrpc_{name}"] for name in held
        )

    async def idle(self) -> None:
        """Wait until no call is in progress, no sequence runs or waits, and no block is in use."""
        async with failsafe():
            while not await self.is_idle():
                await asyncio.sleep(0.02)


class Service(RealService):
    """The service with a small fake model, which is ready at once."""

    module = "tests.fakes.quick_service"

    def __init__(
        self, *options: str, port: int = 0, step_s: float = 0.002, model_id: str = "fake"
    ) -> None:
        env = {"STEP_S": str(step_s), "MODEL_ID": model_id}
        super().__init__(*options, port=port, env=env)


class Gateway(Program):
    """`python -m gateway_http`."""

    def __init__(self, *options: str, upstream: str, port: int = 0) -> None:
        given = "--port", str(port), "--upstream", upstream, *options
        super().__init__("gateway_http", *given)
        self.url = ""

    async def ready(self) -> Self:
        """Wait until the gateway listens and its service is ready."""
        line = await self.logged("listening")
        self.url = f"http://{line['host']}:{line['port']}"
        async with http_client(self.url) as http, failsafe():
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        return self

    async def metrics(self) -> dict[str, float]:
        return await _metrics(f"{self.url}/metrics")

    async def idle(self) -> None:
        """Wait until no request is in progress, apart from requests for metrics."""
        async with failsafe():
            while (await self.metrics())["chatrpc_gateway_requests_in_flight"] > 0:
                await asyncio.sleep(0.02)


class Client:
    """Stubs on a channel of its own to a service. Leaving the `async with` closes it."""

    def __init__(
        self,
        target: str,
        *options: tuple[str, Any],
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        given = ("grpc.use_local_subchannel_pool", 1), *options  # a connection for each client
        # The type stubs do not allow requests that are bytes.
        self.channel: Any = (
            grpc.aio.insecure_channel(target, options=given)
            if credentials is None
            else grpc.aio.secure_channel(target, credentials, options=given)
        )
        self.chat: Any = chat_service_pb2_grpc.ChatServiceStub(self.channel)
        self.completions: Any = completion_service_pb2_grpc.CompletionServiceStub(self.channel)
        self.models: Any = model_service_pb2_grpc.ModelServiceStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    def create(self, text: str = "hi", num_tokens: int = 3, **call: Any) -> Any:
        request = chat_service_pb2.CreateChatCompletionRequest(params=chat(text, num_tokens))
        return self.chat.CreateChatCompletion(request, **call)

    def stream(self, text: str = "hi", num_tokens: int = 3, **call: Any) -> Any:
        request = chat_service_pb2.StreamChatCompletionRequest(params=chat(text, num_tokens))
        return self.chat.StreamChatCompletion(request, **call)


def chat(text: str, num_tokens: int) -> Any:
    """Return the parameters of a chat whose completion has `num_tokens` tokens."""
    given = params(text)
    given.sampling.max_completion_tokens = num_tokens
    return given


def body(text: str = "hi", num_tokens: int = 3, **fields: Any) -> dict[str, Any]:
    """Return the body of an HTTP request for such a chat."""
    messages = [{"role": "user", "content": text}]
    return {"model": "fake", "messages": messages, "max_tokens": num_tokens, **fields}


def http_client(url: str) -> httpx.AsyncClient:
    """Return a client of plain HTTP. Loading certificates would take longer than most tests."""
    return httpx.AsyncClient(base_url=url, timeout=120, verify=False)  # noqa: S501


async def _metrics(url: str) -> dict[str, float]:
    async with http_client(url) as http:
        page = (await http.get(url)).text
    counted: dict[str, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            counted[sample.name] = counted.get(sample.name, 0) + sample.value
    return counted
