"""The tables that a terminal shows."""

import io

from rich.console import Console, RenderableType

from bench import table
from bench.metrics import Outcome, outcome
from tests.bench.records import record
from tests.bench.runs import results


def printed(shown: RenderableType) -> str:
    Console(file=(text := io.StringIO()), width=140).print(shown)
    return text.getvalue()


def test_table_of_a_load_shows_percentiles_side_by_side() -> None:
    text = printed(table.of_outcome(outcome([record(1.0, 2.0), record(1.0, 4.0)])))
    assert "p50" in text
    [row] = [line for line in text.splitlines() if "tpot_ms" in line]
    assert row.split()[1:] == ["2,000", "2,800", "2,980", "3,000"]


def test_table_of_an_invalid_load_shows_its_fault() -> None:
    assert "no text" in printed(table.of_outcome(Outcome({}, "1 of 1 requests: no text")))


def test_table_of_a_run_has_a_row_per_load_and_target_and_the_faults() -> None:
    text = printed(table.of_results(results()))
    [row] = [line for line in text.splitlines() if "1 client" in line and " peer " in line]
    assert "200" in row
    assert "broken, 8: 1 of 8 requests: 3 tokens instead of 64" in text
    assert "absent does not start: exit code 1: no" in text
