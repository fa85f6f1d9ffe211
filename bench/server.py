"""A server that can be measured: its start, its readiness and its clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.client_grpc import GrpcClient
from bench.client_http import Dialect, HttpClient, openai_body
from bench.loadgen import exchange
from bench.process import ProcessGroup, free_port, idle_cpu
from bench.request import Client, Transcript, ask
from bench.results import ServerFacts

START_TIMEOUT_S = 600
_POLL_S = 0.1
SETTLE_S = 2.0


class StartError(Exception):
    """A server did not start. The message is one line."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Free ports on 127.0.0.1, the only address on which servers listen."""

    http: int = field(default_factory=free_port)
    grpc: int = field(default_factory=free_port)
    upstream: int = field(default_factory=free_port)  # of a server that `http` and `grpc` call


@dataclass(frozen=True, slots=True)
class Server:
    """The description of a server.

    Attributes:
        settings: Explains its options in the report.
        weight_bytes: Bytes of the weights that it reads in a decode step. None if unknown.
        arithmetic: The type of its matrix products: `int8` or `bf16`.
        engine_options: The options of our service with which its bare engine is measured.
    """

    name: str
    title: str
    version: str
    settings: str
    model: str
    commands: Callable[[Ports], Sequence[Sequence[str]]]
    env: Mapping[str, str]
    dialect: Dialect = openai_body
    has_grpc: bool = False
    weight_bytes: int | None = None
    arithmetic: str = "bf16"
    engine_options: Sequence[str] = ()

    @property
    def facts(self) -> ServerFacts:
        """The description of the server in the results of a run, without any figures."""
        return ServerFacts(
            self.title,
            self.version,
            self.settings,
            weight_bytes=self.weight_bytes,
            arithmetic=self.arithmetic,
        )


@dataclass(slots=True)
class Running:
    """A running server. Its first response came `ready_s` after the start of its processes."""

    server: Server
    group: ProcessGroup
    clients: dict[str, Client]  # the keys are wires: http, grpc
    ready_s: float
    idle_cpu: float = 0.0

    async def end(self) -> None:
        for client in self.clients.values():
            await client.close()
        await self.group.end()

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Let the server run inside the context. A small request confirms that it responds."""
        self.group.thaw()
        try:
            for client in self.clients.values():
                await exchange(client, Transcript(ask("Hello!", 2)))
            yield
        finally:
            self.group.freeze()


async def start(
    server: Server,
    logs: Path,
    *,
    cache: Path | None = None,
    timeout_s: float = START_TIMEOUT_S,
    settle_s: float = SETTLE_S,
) -> Running:
    """Start a server and wait for its first response. It is frozen on return.

    With `cache`, an empty directory, the server finds no caches of earlier starts.

    Raises:
        StartError: The server ended, or took longer than `timeout_s`.
    """
    ports = Ports()
    env = {**server.env, **(_empty_caches(cache) if cache else {})}
    start_s = time.perf_counter()
    group = await ProcessGroup.start(server.commands(ports), env, logs / f"{server.name}.log")
    clients: dict[str, Client] = {
        "http": HttpClient(f"http://127.0.0.1:{ports.http}/v1", server.model, server.dialect)
    }
    if server.has_grpc:
        clients["grpc"] = GrpcClient(f"127.0.0.1:{ports.grpc}", server.model)
    running = Running(server, group, clients, 0.0)
    try:
        await _until_ready(running, timeout_s)
        running.ready_s = time.perf_counter() - start_s
        await asyncio.sleep(settle_s)
        running.idle_cpu = await idle_cpu(group)
    except BaseException:
        await running.end()
        raise
    group.freeze()
    return running


async def _until_ready(running: Running, timeout_s: float) -> None:
    """Wait for a first response: some servers report readiness before the model is loaded."""
    give_up_s = time.perf_counter() + timeout_s
    client = running.clients["http"]
    while True:
        transcript = Transcript(ask("Hello!", 2))
        await exchange(client, transcript)
        if (fault := client.read(transcript).fault) is None:
            return
        if death := running.group.death:
            raise StartError(death)
        if time.perf_counter() > give_up_s:
            raise StartError(f"not ready within {timeout_s:.0f} s: {fault}")
        await asyncio.sleep(_POLL_S)


def _empty_caches(path: Path) -> dict[str, str]:
    """Return the environment variables of cache directories that the measured programs use."""
    return {
        "XDG_CACHE_HOME": str(path),
        "CHATRPC_SERVICE_CACHE_DIR": str(path / "chatrpc"),
        "VLLM_CACHE_ROOT": str(path / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(path / "inductor"),
        "HF_HOME": str(path / "huggingface"),
        "NUMBA_CACHE_DIR": str(path / "numba"),
    }
