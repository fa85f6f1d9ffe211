"""A short measurement of the embedded model beside a busy neighbour."""

import asyncio

import pytest

from bench.neighbour import SETTINGS, Rates, measure, table

pytestmark = pytest.mark.slow


def test_kept_share_is_the_median_over_rounds() -> None:
    rates = Rates([100.0, 200.0, 50.0], [50.0, 20.0, 50.0])
    assert rates.kept == pytest.approx(0.5)
    assert table({"int8, passive": rates}).splitlines()[1].split() == [
        "int8,", "passive", "100.0", "50.0", "50%",
    ]  # fmt: skip


def test_setting_is_measured_with_and_without_a_neighbour_in_each_round() -> None:
    rates = asyncio.run(measure(SETTINGS[:1], rounds=2, num_tokens=2))
    assert list(rates) == ["int8, as served"]
    (rate,) = rates.values()
    assert len(rate.alone) == len(rate.beside) == 2
    assert min(*rate.alone, *rate.beside) > 0
