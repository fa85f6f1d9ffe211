"""Tables of figures in the terminal."""

import sys
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.attacks import ATTACKS
from bench.budgets import Budget
from bench.metrics import Outcome
from bench.results import Results
from bench.siege import Siege
from bench.summary import Summary

_PERCENTILES = ("p50", "p90", "p99", "max")
_COLUMNS = {
    "tok/s": "output_tok_s",
    "TTFT p50": "ttft_ms.p50",
    "TTFT p99": "ttft_ms.p99",
    "TPOT p50": "tpot_ms.p50",
    "TPOT p99": "tpot_ms.p99",
    "ITL p99": "itl_ms.p99",
    "stall": "stall_ms",
    "turn 2/1": "turn2_over_turn1",
}
# The width in characters if the output is not a terminal. It is enough for all columns.
_WIDTH = 140


def show(shown: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else _WIDTH).print(shown)


def of_outcome(outcome: Outcome) -> RenderableType:
    """Return a table of one load: a row for each figure in milliseconds, with percentiles."""
    table = _table(["", "", *_PERCENTILES], num_names=1)
    names = dict.fromkeys(name.partition(".")[0] for name in outcome.figures)
    for name in names:
        alone = outcome.figures.get(name)
        spread = (outcome.figures.get(f"{name}.{p}") for p in _PERCENTILES)
        table.add_row(name, *(_number(value) for value in (alone, *spread)))
    return _with_faults(table, [outcome.fault] if outcome.fault else [])


def of_siege(found: Siege) -> RenderableType:
    """Return a table with a row for each attack: how the ordinary caller was served during it."""
    table = _table(
        ["attack", "chats", "TTFT p50", "TTFT max", "probe max", "memory, MiB", "verdict"],
        num_names=1,
    )
    rows = {"none": found.calm, **found.attacked}
    for name, served in rows.items():
        title = ATTACKS[name].title if name in ATTACKS else "none"
        figures = [
            len(served.ttft_ms),
            served.median_ttft_ms,
            max(served.ttft_ms, default=None),
            served.longest_probe_ms,
            found.peak_mib.get(name),
        ]
        verdict = (found.fault(name) or "held") if name in ATTACKS else ""
        table.add_row(title, *map(_number, figures), verdict)
    bound = Text(f"Bound of the median TTFT: {found.bound_ms:.0f} ms")
    return Group(table, bound)


def of_results(found: Results) -> RenderableType:
    """Return a table of a run: medians over the rounds for each load and target, and failures."""
    summary = Summary(found)
    faults = [f"{name} {facts.failure}" for name, facts in found.servers.items() if facts.failure]
    table = _table(["load", "target", *_COLUMNS], num_names=2)
    pairs = dict.fromkeys((sample.load, sample.target) for sample in found.samples)
    for load, target in sorted(pairs, key=lambda pair: list(found.loads).index(pair[0])):
        if fault := summary.fault(target, load):
            faults.append(f"{target}, {found.loads[load]}: {fault}")
        figures = (summary.figure(target, load, name) for name in _COLUMNS.values())
        cells = (_number(figure.median if figure else None) for figure in figures)
        table.add_row(found.loads[load], target, *cells)
    return _with_faults(table, faults)


def of_knees(found: Results) -> RenderableType:
    """Return a table of the highest rate of each server within the bounds of the run."""
    table = _table(["server", "requests a second"], num_names=1)
    for facts in found.servers.values():
        table.add_row(facts.title, _number(facts.knee))
    return Group(table, Text(found.bounds.text if found.bounds else ""))


def of_figures(columns: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> Table:
    """Return a table with a row for each name."""
    table = _table(["", *columns], num_names=1)
    for name, figures in rows.items():
        table.add_row(name, *map(_number, figures))
    return table


def of_budgets(found: Iterable[Budget]) -> Table:
    """Return a table of the budgets and the measured values."""
    table = _table(["budget", "at most", "measured", ""], num_names=1)
    for budget in found:
        bound, measured = (
            f"{value:.3g} {budget.unit}" for value in (budget.bound, budget.measured)
        )
        table.add_row(budget.title, bound, measured, "kept" if budget.is_kept else "NOT KEPT")
    return table


def _table(columns: list[str], *, num_names: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="left" if index < num_names else "right")
    return table


def _with_faults(table: Table, faults: list[str]) -> RenderableType:
    if not faults:
        return table
    return Group(table, Text("\n".join(["Not counted:", *faults])))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
