"""Runs the loads: servers are started, warmed up, and measured in turn, in several rounds."""

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from zlib import crc32

import msgspec

from bench import results
from bench.loads import Load
from bench.progress import Progress
from bench.results import Machine, ModelFacts, Results, Sample, ServerFacts
from bench.server import SETTLE_S, Running, Server, StartError, start
from bench.target import EngineTarget, Target, WireTarget, measure

T = TypeVar("T")
Turn = tuple[Load, Target]

# The load after which memory is measured.
_MEMORY_LOAD = "c32"
# If servers run in turn, one that took longer to start is not ended after its turn, only frozen.
_SLOW_START_S = 30.0


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
    def targets(self) -> Mapping[str, Collection[str]]:
        """The loads of each target of the server, by the target's name."""
        name = self.server.name
        loads = {
            name: self.loads,
            f"{name}/grpc": self.grpc_loads,
            f"{name}/engine": self.engine_loads,
        }
        return {target: names for target, names in loads.items() if names}


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of a run.

    Attributes:
        save: It is called with the results after every sample and at the end.
        earlier: Results to continue. A sample that they have is not measured again, unless it has a
            fault.
        is_in_turn: Each server gets all loads of a round at once, and is ended before the next one
            starts. Otherwise all servers are in memory during the whole run, and each load goes to
            one server after another.
    """

    entries: Sequence[Entry]
    loads: Mapping[str, Load]
    num_rounds: int
    logs: Path
    save: Callable[[Results], None]
    machine: Machine
    model: ModelFacts
    size: str = "full"
    earlier: Results | None = None
    is_in_turn: bool = False
    has_first_starts: bool = False
    settle_s: float = SETTLE_S


class Contest:
    """A run of a plan."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self._plan = plan
        self._progress = progress
        self._start_s = time.monotonic()
        self.results = plan.earlier or Results(
            started=results.now(),
            machine=plan.machine,
            model=plan.model,
            size=plan.size,
        )
        self._earlier_s = self.results.duration_s
        self.results.servers = {
            name: msgspec.structs.replace(facts, failure=None)
            for name, facts in self.results.servers.items()
        }
        self.results.loads |= {name: load.title for name, load in plan.loads.items()}
        self.results.samples = [s for s in self.results.samples if not s.fault]
        self._measured = {(s.target, s.load, s.round) for s in self.results.samples}
        self._failed: set[tuple[str, str]] = set()

    async def run(self) -> Results:
        """Run the plan. A server that fails is left out from then on."""
        async with AsyncExitStack() as stack:
            try:
                if self._plan.is_in_turn:
                    await self._run_in_turn(stack)
                else:
                    await self._run_together(stack)
            finally:
                self._save()
        return self.results

    async def _run_together(self, stack: AsyncExitStack) -> None:
        """Start all servers, then send each load to one after another."""
        turns: list[Turn] = []
        for entry in self._plan.entries:
            if any(self._missing(entry, index) for index in range(self._plan.num_rounds)):
                turns += self._turns(entry, await self._start(entry, stack))
        for load, target in turns:
            await self._warm_up(load, target)
        for index in range(self._plan.num_rounds):
            for load in self._plan.loads.values():
                targets = [target for wanted, target in turns if wanted is load]
                for target in _rotated(targets, index):
                    await self._measure(load, target, index)

    async def _run_in_turn(self, stack: AsyncExitStack) -> None:
        """Start one server after another, and send it all of its loads."""
        kept: dict[str, list[Target]] = {}
        for index in range(self._plan.num_rounds):
            for entry in _rotated(self._plan.entries, index):
                name = entry.server.name
                if not self._missing(entry, index) or self._facts(name).failure:
                    continue
                async with AsyncExitStack() as turn:
                    if (targets := kept.get(name)) is None:
                        targets = await self._start(entry, turn)
                        for target in targets:
                            await self._warm_up_once(self._turns(entry, [target]))
                    for load, target in self._turns(entry, targets):
                        await self._measure(load, target, index)
                    if targets and (self._facts(name).ready_s or 0.0) > _SLOW_START_S:
                        kept[name] = targets
                        stack.push_async_callback(turn.pop_all().aclose)

    def _missing(self, entry: Entry, index: int) -> bool:
        """Return whether samples of the entry are missing in the round `index`."""
        return any(
            (target, load, index) not in self._measured
            for target, loads in entry.targets.items()
            for load in loads
        )

    def _turns(self, entry: Entry, targets: Sequence[Target]) -> list[Turn]:
        """Return the pairs of a load and a target, in the order of the plan's loads."""
        return [
            (load, target)
            for name, load in self._plan.loads.items()
            for target in targets
            if name in entry.targets[target.name]
        ]

    async def _start(self, entry: Entry, stack: AsyncExitStack) -> list[Target]:
        """Start a server. Return its targets, or none if it does not start."""
        server = entry.server
        known = self._facts(server.name)
        self.results.servers[server.name] = msgspec.structs.replace(
            server.facts, pss_mib=known.pss_mib, first_ready_s=known.first_ready_s
        )
        targets: list[Target] = []
        try:
            if self._plan.has_first_starts and known.first_ready_s is None:
                first_ready_s = await self._first_start(server)
                self.results.set_facts(server.name, first_ready_s=first_ready_s)
            self._progress.print(f"starting {server.title}")
            running = await start(server, self._plan.logs, settle_s=self._plan.settle_s)
            stack.push_async_callback(running.end)
            self.results.set_facts(server.name, ready_s=running.ready_s, idle_cpu=running.idle_cpu)
            self._progress.print(f"{server.title}: ready after {running.ready_s:.1f} s")
            if entry.loads:
                targets.append(WireTarget(running))
            if entry.grpc_loads:
                targets.append(WireTarget(running, "grpc"))
            if entry.engine_loads:
                targets.append(await self._engine(running, stack))
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
        target = await EngineTarget.start(running.server, self._plan.logs, self._plan.size)
        stack.push_async_callback(target.group.end)
        return target

    async def _warm_up_once(self, turns: Sequence[Turn]) -> None:
        """Send the warm-up of the first load that has several clients, or else of the first one."""
        several = [turn for turn in turns if turn[0].warm_up.num_requests > 1]
        for load, target in (several or turns)[:1]:
            await self._warm_up(load, target)

    async def _warm_up(self, load: Load, target: Target) -> None:
        """Send the warm-up, which is not measured. If it fails, the load is left out."""
        with self._progress.load(f"warm-up: {load.title}", target.name, load.warm_up.num_requests):
            async with target.awake():
                outcome = await target.run(
                    load, _seed(load, "warm-up"), self._progress.on_done, is_warm_up=True
                )
        if outcome.fault:
            self._progress.print(f"{target.name}, {load.title}: {outcome.fault}")
            self._failed.add((target.name, load.name))
            self.results.samples.append(Sample(target.name, load.name, 0, fault=outcome.fault))

    async def _measure(self, load: Load, target: Target, index: int) -> None:
        """Add a sample, unless there is one, or the load has failed on this target."""
        pair = (target.name, load.name)
        if (*pair, index) in self._measured or pair in self._failed:
            return
        sample = await self._sample(load, target, index)
        self.results.samples.append(sample)
        self.results.num_rounds = max(self.results.num_rounds, index + 1)
        self._progress.sample(sample, load.title)
        if sample.fault:  # do not measure it again: each load could take until its timeout
            self._failed.add(pair)
        self._save()

    async def _sample(self, load: Load, target: Target, index: int) -> Sample:
        # The prompts differ by wire: the server's prefix cache has those of its other wires.
        server, _, wire = target.name.partition("/")
        seed = _seed(load, f"round {index} {wire}")
        title = f"round {index + 1} of {self._plan.num_rounds}: {load.title}"
        with self._progress.load(title, target.name, load.num_requests):
            sample = await measure(target, load, index, seed, self._progress.on_done)
        if load.name == _MEMORY_LOAD and target.name == server:
            self.results.set_facts(server, pss_mib=target.group.pss_bytes() / 2**20)
        return sample

    def _facts(self, server: str) -> ServerFacts:
        return self.results.servers.get(server, ServerFacts("", "", ""))

    def _fail(self, server: str, reason: str) -> None:
        self._progress.print(f"{server} {reason}")
        self.results.set_facts(server, failure=reason)

    def _save(self) -> None:
        self.results.duration_s = self._earlier_s + time.monotonic() - self._start_s
        self._plan.save(self.results)


def _rotated(items: Sequence[T], index: int) -> Sequence[T]:
    """Return the items in an order that begins one item later in each round."""
    first = index % len(items) if items else 0
    return (*items[first:], *items[:first])


def _seed(load: Load, occasion: str) -> int:
    """Return the seed of the prompts: equal for all servers, different for each round and load."""
    return crc32(f"{load.name}, {occasion}".encode())
