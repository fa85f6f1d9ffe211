"""The targets of a load: a server over one of its wires, or the bare engine."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

import msgspec
import psutil

from bench.engine_wire import Answer, Order
from bench.loadgen import OnDone
from bench.loads import Load
from bench.metrics import Outcome
from bench.process import ProcessGroup
from bench.results import Sample
from bench.server import START_TIMEOUT_S, Running, Server, StartError


class Target(Protocol):
    """A server or engine that can be measured."""

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> ProcessGroup: ...

    def awake(self) -> AbstractAsyncContextManager[None]:
        """Let the processes run inside the context. Outside of it they are frozen."""
        ...

    async def run(self, load: Load, seed: int, on_done: OnDone, *, is_warm_up: bool) -> Outcome: ...


@dataclass(frozen=True, slots=True)
class WireTarget:
    """A server over HTTP or gRPC. Over HTTP, the target has the server's name."""

    running: Running
    wire: str = "http"

    @property
    def name(self) -> str:
        suffix = "" if self.wire == "http" else f"/{self.wire}"
        return self.running.server.name + suffix

    @property
    def group(self) -> ProcessGroup:
        return self.running.group

    def awake(self) -> AbstractAsyncContextManager[None]:
        return self.running.awake()

    async def run(self, load: Load, seed: int, on_done: OnDone, *, is_warm_up: bool) -> Outcome:
        wanted = load.warm_up if is_warm_up else load
        return await wanted.run(self.running.clients[self.wire], seed, on_done)


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """The engine of one of our variants, in a process that runs the loads on itself."""

    name: str
    group: ProcessGroup
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, server: Server, logs: Path, size: str) -> Self:
        """Start the process. It runs loads of this size: see `bench.loads.standard`.

        Raises:
            StartError: The process did not start.
        """
        group = ProcessGroup(logs / f"{server.name}-engine.log")
        command = (sys.executable, "-m", "bench.engine_host", size, *server.engine_options)
        try:
            process = await group.add(command, os.environ, stdin=asyncio.subprocess.PIPE)
            target = cls(f"{server.name}/engine", group, process)
            async with asyncio.timeout(START_TIMEOUT_S):
                ready = await target._answer()
        except TimeoutError:
            ready = Answer(fault=f"not ready within {START_TIMEOUT_S} s")
        except BaseException:
            await group.end()
            raise
        if ready.fault:
            await group.end()
            raise StartError(f"bare engine: {ready.fault}")
        group.freeze()
        return target

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        self.group.thaw()
        try:
            yield
        finally:
            self.group.freeze()

    async def run(self, load: Load, seed: int, on_done: OnDone, *, is_warm_up: bool) -> Outcome:
        if self.process.stdin is not None:
            order = Order(load.name, seed, is_warm_up)
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")
        answer = await self._answer()
        for _ in range(load.num_requests):
            on_done()
        return Outcome(answer.figures, answer.fault)

    async def _answer(self) -> Answer:
        line = await self.process.stdout.readline() if self.process.stdout else b""
        if line:
            return msgspec.json.decode(line, type=Answer)
        await self.process.wait()
        return Answer(fault=self.group.death)


@dataclass(frozen=True, slots=True)
class CpuShares:
    """The CPU time during a load, as shares of all of the machine's cores."""

    server: float
    client: float
    others: float  # all other processes, and time that the host gave to other machines


class CpuMeter:
    """Measures CPU times since its creation."""

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self._start = self._now()

    def shares(self) -> CpuShares:
        wall, server, client, busy = (
            after - before for before, after in zip(self._start, self._now(), strict=True)
        )
        total = wall * (psutil.cpu_count() or 1)
        others = max(busy - server - client, 0.0)
        return CpuShares(server / total, client / total, others / total)

    def _now(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
        return time.perf_counter(), self._group.cpu_s(), time.process_time(), busy


async def measure(target: Target, load: Load, index: int, seed: int, on_done: OnDone) -> Sample:
    """Run a load on a frozen target, and return its figures as the sample of the round `index`."""
    async with target.awake():
        meter = CpuMeter(target.group)
        outcome = await target.run(load, seed, on_done, is_warm_up=False)
        shares = meter.shares()
    return Sample(
        target.name, load.name, index, dict(outcome.figures), asdict(shares), outcome.fault
    )
