"""A soak test of a small server of our own, and the evaluation of its figures."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import server, soak
from bench.soak import MAX_GROWTH, Soak
from tests.bench.echo import echo

FIGURES = {"num_requests": 2.0, "fairness": 1.0, "least_tokens": 5.0}
GOOD = Soak(2, 1.0, FIGURES, {"service": 0.0}, {}, [])


async def soaked(tmp_path: Path, *arguments: str) -> Soak:
    running = await server.start(echo("a", *arguments), tmp_path, settle_s=0.0)
    try:
        async with running.awake():
            return await soak.soak(
                running.clients["http"],
                running.group,
                num_clients=4,
                warm_up_s=0.2,
                duration_s=0.5,
                sample_s=0.05,
            )
    finally:
        await running.end()


async def test_soak_serves_each_client_and_measures_each_process(tmp_path: Path) -> None:
    found = await soaked(tmp_path)
    assert found.faults == []
    assert found.figures["least_tokens"] > 0
    assert found.figures["num_requests"] >= 4
    assert 0.25 <= found.figures["fairness"] <= 1
    [(name, samples)] = found.pss_mib.items()
    assert name.startswith("python")
    assert all(sample > 1 for sample in samples)


@pytest.mark.slow
async def test_wrong_response_fails_the_soak(tmp_path: Path) -> None:
    found = await soaked(tmp_path, "short")
    assert "instead of" in (found.outcome.fault or "")


def test_growth_beyond_the_bound_fails_the_soak() -> None:
    assert GOOD.outcome.fault is None
    grown = Soak(2, 1.0, GOOD.figures, {"service": MAX_GROWTH + 0.01}, {}, [])
    assert "service grew" in (grown.outcome.fault or "")


@pytest.mark.parametrize(
    "figures", [{"num_requests": 0.0}, {"fairness": 0.79}, {"least_tokens": 0.0}]
)
def test_soak_without_requests_or_fairness_fails(figures: dict[str, float]) -> None:
    unfair = Soak(2, 1.0, FIGURES | figures, GOOD.growth, {}, [])
    assert unfair.outcome.fault is not None


def test_soak_without_memory_samples_fails() -> None:
    assert Soak(2, 1.0, FIGURES, {}, {}, []).outcome.fault is not None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_fairness_is_between_one_share_and_one(shares: list[float]) -> None:
    assert 1 / len(shares) - 1e-9 <= soak.fairness(shares) <= 1 + 1e-9


def test_fairness_of_equal_and_of_single_shares_is_exact() -> None:
    assert soak.fairness([3, 3, 3]) == pytest.approx(1)
    assert soak.fairness([9, 0, 0]) == pytest.approx(1 / 3)


def test_growth_compares_the_last_quarter_with_the_first() -> None:
    assert soak.growth([100.0]) == 0
    assert soak.growth([100, 100, 500, 100, 100, 100, 110, 110]) == pytest.approx(0.1)
