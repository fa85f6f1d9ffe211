"""The search for the highest rate within bounds, on servers whose limit is known."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.knee import RateRun, Search
from bench.loads import Open
from bench.metrics import Outcome
from bench.progress import Progress
from bench.results import Bounds, Results
from tests.bench.echo import echo
from tests.bench.runs import MACHINE, MODEL

BOUNDS = Bounds(ttft_p99_ms=1000.0, tpot_p50_ms=100.0)


def outcome(ttft_ms: float, tpot_ms: float) -> Outcome:
    return Outcome({"ttft_ms.p99": ttft_ms, "tpot_ms.p50": tpot_ms})


def search(num_refinements: int = 0) -> Search:
    return Search(BOUNDS, first_rate=1.0, seconds=10.0, num_refinements=num_refinements)


@pytest.mark.parametrize(
    ("found", "is_within"),
    [
        (outcome(1000.0, 100.0), True),
        (outcome(1001.0, 1.0), False),
        (outcome(1.0, 101.0), False),
        (Outcome({}, "no response"), False),
    ],
)
def test_bounds_hold_for_both_times_of_valid_figures(found: Outcome, is_within: bool) -> None:
    assert BOUNDS.holds(found) is is_within


@given(limit=st.floats(0.05, 500.0), num_refinements=st.integers(0, 5))
async def test_knee_is_the_last_rate_below_the_limit(limit: float, num_refinements: int) -> None:
    tried: list[float] = []

    async def measure(load: Open) -> Outcome:
        tried.append(load.rate)
        return outcome(1.0 if load.rate <= limit else 5000.0, 1.0)

    knee = await search(num_refinements).run(measure)
    assert knee is not None
    assert knee == max(rate for rate in tried if rate <= limit)
    assert limit / knee <= 2 ** (0.5**num_refinements) * (1 + 1e-9)


async def test_server_that_holds_no_rate_has_no_knee() -> None:
    async def measure(load: Open) -> Outcome:
        return Outcome({}, "no response")

    assert await search().run(measure) is None


@pytest.mark.slow
async def test_servers_are_measured_one_after_another(tmp_path: Path) -> None:
    found = Results("now", MACHINE, MODEL)
    fast = Search(Bounds(1e6, 1e6), first_rate=600.0, seconds=0.01, num_refinements=1)
    run = RateRun(found, fast, tmp_path, Progress(Console(quiet=True)))
    servers = [echo("a", "dies"), replace(echo("b"), weight_bytes=5, arithmetic="int8")]
    await run.run(servers, lambda _: None, settle_s=0.0)
    assert found.servers["a"].failure == "does not start: exit code 1: no such model"
    assert found.servers["b"].knee == 600.0
    assert (found.servers["b"].weight_bytes, found.servers["b"].arithmetic) == (5, "int8")
    assert found.bounds == fast.bounds
    [sample] = found.samples
    assert (sample.target, sample.load, sample.fault) == ("b", "rate-600", None)
    assert sample.figures["rate"] == 600.0


def test_load_has_arrivals_for_its_seconds_and_at_least_16() -> None:
    assert search().load(0.1).num_requests == 16
    assert search().load(8.0).num_requests == 80
    assert search().load(8.0).name == "rate-8"
