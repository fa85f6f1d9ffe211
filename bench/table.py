"""Figures in a terminal."""

from rich import box
from rich.table import Table

from bench.metrics import Outcome
from bench.results import Results
from bench.summary import Summary

_COLUMNS = {
    "tok/s": "output_tok_s",
    "TTFT p50 ms": "ttft_ms.p50",
    "TTFT p99": "ttft_ms.p99",
    "TPOT p50": "tpot_ms.p50",
    "TPOT p99": "tpot_ms.p99",
    "ITL p99": "itl_ms.p99",
    "stall": "stall_ms",
    "turn 2 / 1": "turn2_over_turn1",
}


def of_outcome(outcome: Outcome) -> Table:
    """One load: a row for each figure, percentiles side by side."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in ("", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    if outcome.fault:
        table.add_row("does not count", outcome.fault)
    names = dict.fromkeys(name.partition(".")[0] for name in outcome.figures)
    for name in names:
        alone = outcome.figures.get(name)
        spread = (outcome.figures.get(f"{name}.{p}") for p in ("p50", "p90", "p99", "max"))
        table.add_row(name, *(_number(value) for value in (alone, *spread)))
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def of_results(found: Results) -> Table:
    """A run: a row for each target and load, medians over the rounds."""
    summary = Summary(found)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("load")
    table.add_column("target")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    pairs = dict.fromkeys((sample.load, sample.target) for sample in found.samples)
    for load, target in sorted(pairs, key=lambda pair: list(found.loads).index(pair[0])):
        if fault := summary.fault(target, load):
            table.add_row(found.loads[load], target, f"does not count: {fault}")
            continue
        figures = (summary.figure(target, load, name) for name in _COLUMNS.values())
        cells = (_number(figure.median if figure else None) for figure in figures)
        table.add_row(found.loads[load], target, *cells)
    return table
