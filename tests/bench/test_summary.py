"""Medians, spreads and ratios over rounds."""

import pytest

from bench.summary import Summary
from tests.bench.runs import results

SUMMARY = Summary(results())


def test_figure_is_the_median_with_its_spread() -> None:
    figure = SUMMARY.figure("chatrpc", "c1", "output_tok_s")
    assert figure is not None
    assert (figure.median, figure.low, figure.high, figure.num_rounds) == (400.0, 200.0, 600.0, 2)


def test_ratio_is_computed_within_each_round() -> None:
    ratio = SUMMARY.ratio("chatrpc", "peer", "c1", "output_tok_s")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


def test_samples_with_faults_give_no_figure() -> None:
    assert SUMMARY.figure("broken", "c8", "output_tok_s") is None
    assert SUMMARY.fault("broken", "c8") == "1 of 8 requests: 3 tokens instead of 64"
    assert SUMMARY.ratio("broken", "chatrpc", "c8", "output_tok_s") is None


def test_unmeasured_load_has_no_figure_and_no_fault() -> None:
    assert SUMMARY.figure("absent", "c1", "output_tok_s") is None
    assert SUMMARY.fault("absent", "c1") is None


def test_cpu_shares_are_means_of_all_samples() -> None:
    share = SUMMARY.cpu("client")
    assert share is not None
    assert share.median == pytest.approx(0.02)
