"""The budgets, compared with measured values."""

import pytest

from bench.budgets import budgets
from bench.results import Results
from bench.summary import Summary
from tests.bench.runs import MACHINE, MODEL, results, sample


def test_layers_and_stall_are_compared_with_their_bounds() -> None:
    grpc, gateway, stall = budgets(Summary(results()))
    assert grpc.measured == pytest.approx(100 * (1 - 2.1 / 2.2))
    assert gateway.measured == pytest.approx(100 * (1 - 2.0 / 2.1))
    assert stall.measured == 50.0
    assert grpc.is_kept
    assert gateway.is_kept
    assert stall.is_kept


def test_figure_above_its_bound_breaks_the_budget() -> None:
    samples = [
        sample("chatrpc/engine", "c32", 0, output_tok_s=100.0),
        sample("chatrpc/grpc", "c32", 0, output_tok_s=94.0),
        sample("chatrpc", "stall", 0, stall_ms=5000.0),
    ]
    found = list(budgets(Summary(Results("now", MACHINE, MODEL, samples=samples))))
    assert [budget.is_kept for budget in found] == [False, False]


def test_unmeasured_figure_breaks_no_budget() -> None:
    assert list(budgets(Summary(Results("now", MACHINE, MODEL)))) == []
