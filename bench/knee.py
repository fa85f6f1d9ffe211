"""Finds the knee of each server: the highest rate of requests that it serves within bounds.

Requests arrive as a Poisson process, independent of earlier ones (an open loop). If they arrive
faster than a server completes them, they queue, and the time to first token grows without end.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

from bench.loads import Open
from bench.metrics import Outcome
from bench.progress import Progress
from bench.results import Bounds, Results
from bench.server import SETTLE_S, Server, StartError, start
from bench.target import Target, WireTarget, measure

# A load of a rate is called by this and the rate.
PREFIX = "rate-"

_PROMPT_WORDS, _NUM_TOKENS = 120, 64
_MIN_REQUESTS = 16
# No knee is searched for above this number of requests per second.
_MAX_RATE = 1000.0


Measure = Callable[[Open], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Search:
    """The order in which rates are tried.

    The rate doubles, from `first_rate` requests a second, until a bound is exceeded. If that is at
    once, it halves until none is. Then `num_refinements` rates between the best good one and the
    worst bad one are tried, each the geometric mean of the two.

    Attributes:
        seconds: Duration of the arrivals at each rate. At least 16 requests arrive.
    """

    bounds: Bounds
    first_rate: float
    seconds: float
    num_refinements: int

    def load(self, rate: float) -> Open:
        num_requests = max(_MIN_REQUESTS, ceil(rate * self.seconds))
        title = f"{rate:.3g} requests a second"
        return Open(f"{PREFIX}{rate:.3g}", title, rate, num_requests, _PROMPT_WORDS, _NUM_TOKENS)

    async def run(self, measure: Measure) -> float | None:
        """Return the highest rate within the bounds, or None if there is none above 1 / 64 of the
        first one.
        """
        good: float | None = None
        bad: float | None = None
        rate = self.first_rate
        while self.first_rate / 64 < rate < _MAX_RATE and (good is None or bad is None):
            if self.bounds.holds(await measure(self.load(rate))):
                good = rate
                rate *= 2
            else:
                bad = rate
                rate /= 2
        for _ in range(self.num_refinements if good and bad else 0):
            rate = sqrt((good or 0.0) * (bad or 0.0))
            if self.bounds.holds(await measure(self.load(rate))):
                good = rate
            else:
                bad = rate
        return good


class RateRun:
    """Finds the knees of several servers. One after another is started, measured and ended."""

    def __init__(self, results: Results, search: Search, logs: Path, progress: Progress) -> None:
        self.results = results
        self._search = search
        self._logs = logs
        self._progress = progress

    async def run(
        self, servers: Sequence[Server], save: Callable[[Results], None], settle_s: float = SETTLE_S
    ) -> None:
        """Measure the servers. `save` is called with the results after every sample."""
        self.results.bounds = self._search.bounds
        self.results.num_rounds = 1
        for server in servers:
            self.results.servers[server.name] = server.facts
            try:
                running = await start(server, self._logs, settle_s=settle_s)
            except StartError as error:
                self._progress.print(f"{server.title} does not start: {error}")
                self.results.set_facts(server.name, failure=f"does not start: {error}")
                continue
            self.results.set_facts(server.name, ready_s=running.ready_s)
            try:
                knee = await self._find(WireTarget(running), save)
            finally:
                await running.end()
            self.results.set_facts(server.name, knee=knee)
            save(self.results)

    async def _find(self, target: Target, save: Callable[[Results], None]) -> float | None:
        seed = 0

        async def measure_rate(load: Open) -> Outcome:
            nonlocal seed
            seed += 1
            with self._progress.load(load.title, target.name, load.num_requests):
                sample = await measure(target, load, 0, seed, self._progress.on_done)
            self.results.loads[load.name] = load.title
            self.results.samples.append(sample)
            self._progress.sample(sample, load.title)
            save(self.results)
            return Outcome(sample.figures, sample.fault)

        warm_up = self._search.load(self._search.first_rate)
        async with target.awake():
            await target.run(warm_up, 0, lambda: None, is_warm_up=True)
        return await self._search.run(measure_rate)
