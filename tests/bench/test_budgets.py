"""What is promised, against what was measured."""

import pytest

from bench.budgets import budgets
from bench.results import Results
from bench.summary import Summary
from tests.bench.runs import MACHINE, results, sample


def test_layers_and_the_stall_are_held_against_their_bounds() -> None:
    grpc, gateway, stall = budgets(Summary(results()))
    assert grpc.measured == pytest.approx(100 * (1 - 2.1 / 2.2))
    assert gateway.measured == pytest.approx(100 * (1 - 2.0 / 2.1))
    assert stall.measured == 50.0
    assert grpc.is_kept
    assert gateway.is_kept
    assert stall.is_kept


def test_what_is_slower_than_promised_is_not_kept() -> None:
    samples = [
        sample("chatrpc/engine", "c32", 0, output_tok_s=100.0),
        sample("chatrpc/grpc", "c32", 0, output_tok_s=94.0),
        sample("chatrpc", "stall", 0, stall_ms=5000.0),
    ]
    found = list(budgets(Summary(Results("now", MACHINE, samples=samples))))
    assert [budget.is_kept for budget in found] == [False, False]


def test_what_was_not_measured_is_not_judged() -> None:
    assert list(budgets(Summary(Results("now", MACHINE)))) == []
