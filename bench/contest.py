"""Runs the loads: servers are started, warmed up, and measured in turn, in several rounds."""

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from zlib import crc32

import msgspec

from bench import machine
from bench.loads import Load
from bench.progress import Progress
from bench.results import Results, Sample, ServerFacts
from bench.server import SETTLE_S, Running, Server, StartError, start
from bench.target import CpuMeter, EngineTarget, Target, WireTarget

Turn = tuple[Load, Target]

# The load after which memory is measured.
_MEMORY_LOAD = "c32"


@dataclass(frozen=True, slots=True)
class Entry:
    """A server of the run, and its loads over HTTP, over gRPC and on the bare engine."""

    server: Server
    loads: Collection[str]
    grpc_loads: Collection[str] = ()
    engine_loads: Collection[str] = ()

    def only(self, wanted: Collection[str]) -> "Entry":
        """Return the entry with only the loads in `wanted`."""
        ours = (self.loads, self.grpc_loads, self.engine_loads)
        return Entry(self.server, *([name for name in names if name in wanted] for names in ours))

    @property
    def is_idle(self) -> bool:
        return not (self.loads or self.grpc_loads or self.engine_loads)


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run. `save` is called with the results after every round and at the end."""

    entries: Sequence[Entry]
    loads: Mapping[str, Load]
    num_rounds: int
    logs: Path
    save: Callable[[Results], None]
    has_first_starts: bool = False
    is_quick: bool = False
    settle_s: float = SETTLE_S


class Contest:
    """A run of a plan."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._start_s = time.monotonic()
        self.results = Results(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine.facts(),
            is_quick=plan.is_quick,
            loads={name: load.title for name, load in plan.loads.items()},
        )

    async def run(self) -> Results:
        """Run the plan. A server that fails is left out from then on."""
        plan = self._plan
        async with AsyncExitStack() as stack:
            try:
                turns = await self._start_all(stack)
                for load, target in list(turns):
                    await self._warm_up(load, target, turns)
                for index in range(plan.num_rounds):
                    await self._round(index, turns)
                    self.results.num_rounds = index + 1
                    self._save()
            finally:
                self._save()
        return self.results

    async def _start_all(self, stack: AsyncExitStack) -> list[Turn]:
        """Start every server. Return all pairs of a load and a target to measure."""
        wanted: dict[str, list[Target]] = {name: [] for name in self._plan.loads}
        for entry in self._plan.entries:
            for target, names in await self._start(entry, stack):
                for name in names:
                    wanted[name].append(target)
        loads = self._plan.loads
        return [(loads[name], target) for name, targets in wanted.items() for target in targets]

    async def _start(
        self, entry: Entry, stack: AsyncExitStack
    ) -> list[tuple[Target, Collection[str]]]:
        server = entry.server
        facts = ServerFacts(server.title, server.version, server.settings)
        self.results.servers[server.name] = facts
        targets: list[tuple[Target, Collection[str]]] = []
        try:
            if self._plan.has_first_starts:
                self._note(server.name, first_ready_s=await self._first_start(server))
            self._progress.print(f"starting {server.title}")
            running = await start(server, self._plan.logs, settle_s=self._plan.settle_s)
            stack.push_async_callback(running.end)
            self._note(server.name, ready_s=running.ready_s, idle_cpu=running.idle_cpu)
            self._progress.print(f"{server.title}: ready after {running.ready_s:.1f} s")
            targets.append((WireTarget(running), entry.loads))
            if entry.grpc_loads:
                targets.append((WireTarget(running, "grpc"), entry.grpc_loads))
            if entry.engine_loads:
                targets.append((await self._engine(running, stack), entry.engine_loads))
        except StartError as error:
            self._fail(server.name, f"does not start: {error}")
        return targets

    async def _first_start(self, server: Server) -> float:
        self._progress.print(f"starting {server.title} with empty caches")
        with tempfile.TemporaryDirectory(prefix="chatrpc-bench-") as cache:
            running = await start(
                server, self._plan.logs, cache=Path(cache), settle_s=self._plan.settle_s
            )
            await running.end()
        return running.ready_s

    async def _engine(self, running: Running, stack: AsyncExitStack) -> EngineTarget:
        self._progress.print(f"starting the bare engine of {running.server.title}")
        target = await EngineTarget.start(
            running.server.name, self._plan.logs, is_quick=self._plan.is_quick
        )
        stack.push_async_callback(target.group.end)
        return target

    async def _warm_up(self, load: Load, target: Target, turns: list[Turn]) -> None:
        """Send the warm-up, which is not measured. A target that fails is left out."""
        with self._progress.load(f"warm-up: {load.title}", target.name, load.warm_up.num_requests):
            async with target.awake():
                outcome = await target.run(
                    load, _seed(load, "warm-up"), self._progress.on_done, is_warm_up=True
                )
        if outcome.fault:
            self._progress.print(f"{target.name}, {load.title}: {outcome.fault}")
            turns.remove((load, target))
            self.results.samples.append(Sample(target.name, load.name, 0, fault=outcome.fault))

    async def _round(self, index: int, turns: list[Turn]) -> None:
        for load in self._plan.loads.values():
            targets = [target for wanted, target in turns if wanted is load]
            first = index % len(targets) if targets else 0
            for target in (*targets[first:], *targets[:first]):  # the order rotates
                sample = await self._sample(load, target, index)
                self.results.samples.append(sample)
                self._progress.sample(sample, load.title)
                if sample.fault:  # do not measure it again: each load could take until its timeout
                    turns.remove((load, target))

    async def _sample(self, load: Load, target: Target, index: int) -> Sample:
        # The prompts differ by wire: the server's prefix cache has those of its other wires.
        server, _, wire = target.name.partition("/")
        seed = _seed(load, f"round {index} {wire}")
        title = f"round {index + 1} of {self._plan.num_rounds}: {load.title}"
        with self._progress.load(title, target.name, load.num_requests):
            async with target.awake():
                meter = CpuMeter(target.group)
                outcome = await target.run(load, seed, self._progress.on_done, is_warm_up=False)
                shares = meter.shares()
        if load.name == _MEMORY_LOAD and target.name == server:
            self._note(server, pss_mib=target.group.pss_bytes() / 2**20)
        return Sample(
            target.name, load.name, index, dict(outcome.figures), asdict(shares), outcome.fault
        )

    def _note(self, server: str, **facts: float) -> None:
        known = self.results.servers[server]
        self.results.servers[server] = msgspec.structs.replace(known, **facts)

    def _fail(self, server: str, reason: str) -> None:
        self._progress.print(f"{server} {reason}")
        known = self.results.servers[server]
        self.results.servers[server] = msgspec.structs.replace(known, failure=reason)

    def _save(self) -> None:
        self.results.duration_s = time.monotonic() - self._start_s
        self._plan.save(self.results)


def _seed(load: Load, occasion: str) -> int:
    """Return the seed of the prompts: equal for all servers, different for each round and load."""
    return crc32(f"{load.name}, {occasion}".encode())
