"""Replicas of a model: the real gRPC server with scripted engines.

Run as a module, it is a replica in a separate process, which can be killed. It prints its port and
the number of requests whenever they change.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from chatrpc_process.logs.configuration import configure_logging
from service.domain.backend import ServedModel
from service.domain.engine import EngineStats, FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.generation.local_backend import locally_served
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.support.grpc_server import CARD


class ReplicaEngine(FakeEngine):
    """An engine that generates its name. Outputs wait for `go`; `num_asked` counts requests."""

    def __init__(self, name: str, max_num_seqs: int = 8) -> None:
        super().__init__()
        self.name = name
        self.max_num_seqs = max_num_seqs
        self.load: int | None = None
        """The load that it reports. None means the real load."""
        self.go = asyncio.Event()
        self.go.set()
        self.answer(name)

    def hold(self) -> None:
        """Generate nothing until `go`."""
        self.go.clear()
        self.script = [self.go, *self.script]

    def hold_after_first(self) -> None:
        """Generate one token, and the rest after `go`."""
        self.go.clear()
        self.script = [TokenOutput((ord(">"),)), self.go, TokenOutput((ord("."),), _END)]

    @property
    def num_asked(self) -> int:
        return len(self.requests)

    def stats(self) -> EngineStats:
        load = self.num_running if self.load is None else self.load
        return EngineStats(max_num_seqs=self.max_num_seqs, num_running=load)


_END = FinishReason.LENGTH


@dataclass
class Replica:
    engine: ReplicaEngine
    lifecycle: Lifecycle
    server: Server
    model: ServedModel
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@asynccontextmanager
async def replica(name: str, model: str = "fake", **options: Any) -> AsyncIterator[Replica]:
    """Run a replica that serves `model`."""
    engine = ReplicaEngine(name, **options)
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=600)
    port = await server.start("127.0.0.1", 0)
    served = locally_served(
        LocalModel(
            replace(CARD, id=model, aliases=()),
            ByteTokenizer(),
            engine,
            SamplingParams(),
            frozenset({EOS}),
            257,
        )
    )
    await lifecycle.serve(served)
    try:
        yield Replica(engine, lifecycle, server, served, port)
    finally:
        await server.stop()


def target(*replicas: Replica) -> str:
    return "ipv4:" + ",".join(each.address for each in replicas)


async def _obey(commands: asyncio.StreamReader, engine: ReplicaEngine) -> None:
    while await commands.readline():
        engine.go.set()


async def _main(name: str) -> None:
    """Hold requests until a line is read from stdin. Return at the end of stdin."""
    async with replica(name) as running:
        engine = running.engine
        engine.hold()
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
        )
        obeying = asyncio.ensure_future(_obey(commands, engine))
        printed: object = None
        while not obeying.done():
            state = (running.port, engine.num_asked)
            if state != printed:
                sys.stdout.write(f"{state[0]} {state[1]}\n")
                sys.stdout.flush()
                printed = state
            await asyncio.sleep(0.005)


if __name__ == "__main__":
    configure_logging("error", "text")  # another process reads stdout
    asyncio.run(_main(sys.argv[1]))
