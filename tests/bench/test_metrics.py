"""The arithmetic of every metric."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import metrics
from bench.request import Record
from tests.bench.records import record

times = st.lists(
    st.floats(min_value=0.001, max_value=1000, allow_nan=False), min_size=2, max_size=30
).map(sorted)
values = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=50)


def test_ttft_is_measured_from_the_due_time() -> None:
    assert metrics.ttft(record(2.5, 3.0, due_s=2.0)) == pytest.approx(0.5)


def test_tpot_divides_by_the_tokens_of_the_usage() -> None:
    two_deltas_of_nine_tokens = record(1.0, 3.0, num_tokens=9)
    assert metrics.tpot(two_deltas_of_nine_tokens) == pytest.approx(0.25)


def test_itl_has_each_gap_between_arrivals() -> None:
    assert metrics.itl(record(1.0, 1.5, 3.5)) == [0.5, 2.0]


def test_throughput_is_all_tokens_divided_by_the_total_time() -> None:
    records = [record(1.0, 2.0, due_s=0.0), record(3.0, 5.0, due_s=1.0)]
    assert metrics.throughput(records) == pytest.approx(4 / 5.0)


def test_worst_gap_is_taken_from_gaps_that_overlap_the_window() -> None:
    stream = record(0.0, 5.0, 5.1, 5.9, 6.0, 20.0)
    assert metrics.worst_gap(stream, since_s=5.05, until_s=5.95) == pytest.approx(0.8)
    assert metrics.worst_gap(stream, since_s=4.0, until_s=5.95) == pytest.approx(5.0)
    assert metrics.worst_gap(stream, since_s=30.0, until_s=40.0) == 0.0


@given(times)
def test_gaps_of_a_stream_sum_to_its_duration(arrivals: list[float]) -> None:
    stream = record(*arrivals)
    assert sum(metrics.itl(stream)) == pytest.approx(arrivals[-1] - arrivals[0])
    assert metrics.tpot(stream) * (len(arrivals) - 1) == pytest.approx(sum(metrics.itl(stream)))
    assert metrics.worst_gap(stream, 0.0, 2000.0) == max(metrics.itl(stream))


@given(values)
def test_percentiles_increase_within_the_range_of_the_values(found: list[float]) -> None:
    told = metrics.percentiles("x", found)
    in_order = [told[f"x.{p}"] for p in ("p50", "p90", "p99", "max")]
    assert in_order == sorted(in_order)
    assert min(found) * 1000 <= told["x.p50"] * (1 + 1e-9)
    assert told["x.max"] == pytest.approx(max(found) * 1000)


def test_figures_without_records_have_no_percentiles() -> None:
    assert metrics.percentiles("x", []) == {}


def test_outcome_has_the_figures_and_the_added_ones() -> None:
    outcome = metrics.outcome([record(1.0, 2.0), record(1.0, 3.0)], {"more": 7.0})
    assert outcome.fault is None
    assert outcome.figures["output_tok_s"] == pytest.approx(4 / 3)
    assert outcome.figures["ttft_ms.p50"] == pytest.approx(1000)
    assert outcome.figures["more"] == 7.0


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (replace(record(1.0, 2.0), num_requested=3), "2 tokens instead of 3"),
        (replace(record(1.0), error="HTTP 500"), "HTTP 500"),
        (record(num_tokens=2), "no text"),
    ],
)
def test_one_wrong_response_invalidates_the_load(broken: Record, said: str) -> None:
    outcome = metrics.outcome([record(1.0, 2.0), broken])
    assert outcome.figures == {}
    assert outcome.fault == f"1 of 2 requests: {said}"


def test_load_without_requests_has_a_fault() -> None:
    assert metrics.outcome([]).fault == "no request was sent"
