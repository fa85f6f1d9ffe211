"""Renders results to docs/benchmarks.md: our text, and a section with tables and plots for each.

The results are in docs/benchmarks/, a file for each model and kind of machine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from string import Template

from bench import plot, results
from bench.budgets import budgets
from bench.knee import PREFIX
from bench.plot import Panel, short
from bench.results import Machine, Results, ServerFacts
from bench.roofline import Roofline
from bench.summary import Figure, Summary

OURS = "chatrpc"
TEMPLATE_TOKENS = 30

_PAGE = Path(__file__).with_name("report.md")
_SECTION = Path(__file__).with_name("report_section.md")


@dataclass(frozen=True, slots=True)
class Column:
    """A figure of a load as a column of a table. More is better for a rate, less for a time."""

    title: str
    load: str
    figure: str
    is_rate: bool = False


_RATES = (
    Column("1 client", "c1", "output_tok_s", is_rate=True),
    Column("8 clients", "c8", "output_tok_s", is_rate=True),
    Column("32 clients", "c32", "output_tok_s", is_rate=True),
    Column("Long prompts", "long", "output_tok_s", is_rate=True),
)
_TIMES = (
    Column("TTFT, 1 client", "c1", "ttft_ms.p50"),
    Column("TPOT, 1 client", "c1", "tpot_ms.p50"),
    Column("TTFT, long prompts", "long", "ttft_ms.p50"),
    Column("TTFT, second turn", "turns", "ttft_ms.p50"),
    Column("Worst gap, stall", "stall", "stall_ms"),
)
_MORE_TIMES = (
    Column("Second turn over first", "turns", "turn2_over_turn1"),
    Column("TTFT of the long prompt, stall", "stall", "long_ttft_ms"),
)
_TAILS = (
    Column("TTFT p99", "c32", "ttft_ms.p99"),
    Column("TPOT p50", "c32", "tpot_ms.p50"),
    Column("TPOT p99", "c32", "tpot_ms.p99"),
    Column("ITL p50", "c32", "itl_ms.p50"),
    Column("ITL p99", "c32", "itl_ms.p99"),
)
_OPEN = (
    Column("tok/s", "", "output_tok_s", is_rate=True),
    Column("TTFT p50", "", "ttft_ms.p50"),
    Column("TTFT p99", "", "ttft_ms.p99"),
    Column("TPOT p50", "", "tpot_ms.p50"),
    Column("TPOT p99", "", "tpot_ms.p99"),
)

_EDIT = Column("", "edit", "output_tok_s")
# The loads that show what drafts cost and what they gain.
_DRAFTED = ("c1", "c8", "c32", "edit")


def publish(found: Results, docs: Path) -> None:
    """Write the results to docs/benchmarks/, and the page."""
    name = found.model.name + ("-amx" if found.machine.has_amx else "")
    results.write(found, docs / "benchmarks" / f"{name}.json")
    render(docs)


def render(docs: Path) -> None:
    """Write benchmarks.md and the plots of all results in docs/benchmarks/."""
    runs = {file.stem: results.read(file) for file in (docs / "benchmarks").glob("*.json")}
    sections = []
    for name in sorted(runs, key=lambda name: _order(runs[name])):
        section = Section(name, runs[name])
        for plot_name, panels in section.plots().items():
            path = docs / "benchmarks" / f"{name}-{plot_name}.svg"
            plot.bars(panels, section.titles, section.ours, path)
        sections.append(Template(_SECTION.read_text()).substitute(section.values()))
    values = {"template_tokens": str(TEMPLATE_TOKENS), "sections": "\n".join(sections)}
    (docs / "benchmarks.md").write_text(Template(_PAGE.read_text()).substitute(values))


def _order(found: Results) -> tuple[int, int]:
    """Return the key of the order of sections: latest day first, then smallest model first."""
    day = datetime.fromisoformat(found.started).toordinal()
    return -day, found.model.num_parameters


class Section:
    """The values, tables and plots of the results of one model on one machine."""

    def __init__(self, name: str, found: Results) -> None:
        self._name = name
        self._found = found
        self._summary = Summary(found)
        closed = [load for load in found.loads if not load.startswith((PREFIX, "open-"))]
        self.titles = {
            server: facts.title
            for server, facts in found.servers.items()
            if any(self._summary.has(server, load) for load in closed)
        }
        self.ours = [server for server in self.titles if server.startswith(OURS)]

    def plots(self) -> dict[str, list[Panel]]:
        servers = {name: self._found.servers[name] for name in self.titles}
        plots = {
            "throughput": [self._panel(column, "tok/s, more is better") for column in _RATES],
            "latency": [self._panel(column, "ms, less is better") for column in _TIMES],
            "life": [
                _facts_panel("Start", "s, less is better", servers, "ready_s"),
                _facts_panel("First start", "s, less is better", servers, "first_ready_s"),
                _facts_panel("Memory", "MiB, less is better", servers, "pss_mib"),
            ],
        }
        return {
            name: [panel for panel in panels if panel.values] or panels[:1]
            for name, panels in plots.items()
        }

    def values(self) -> dict[str, str]:
        """Return the values of the placeholders of a section."""
        found = self._found
        amx = "with AMX" if found.machine.has_amx else "without AMX"
        return {
            "title": f"{found.model.title[0].upper()}{found.model.title[1:]}, {amx}",
            "note": f"\n{found.note}\n" if found.note else "",
            "model": self._model(),
            "started": found.started[:10],
            "requests": self._requests(),
            "rounds": "was 1 round" if found.num_rounds == 1 else f"were {found.num_rounds} rounds",
            "machine": _machine(found.machine),
            "servers": _servers(found.servers),
            "throughput_table": self._table(_RATES, "tokens per second"),
            "limits": self._limits(),
            "latency_table": "\n\n".join(
                self._table(columns, corner)
                for columns, corner in (
                    (_TIMES, "milliseconds"),
                    (_MORE_TIMES, "ratio; milliseconds"),
                    (_TAILS, "milliseconds, 32 clients"),
                )
                if self._measured(columns)
            ),
            "ratio_table": self._ratios((*_RATES, *_TIMES)),
            "life_table": self._life(),
            "own_sections": "".join(
                (
                    self._budgets(),
                    self._layers(),
                    self._drafts(),
                    self._open_loop(),
                    self._knees(),
                )
            ),
            "client_cpu": _share(self._summary.cpu("client")),
            "others_cpu": _share(self._summary.cpu("others")),
            **{
                f"{name}_plot": f"![{alt}](benchmarks/{self._name}-{name}.svg)"
                for name, alt in _ALTS.items()
            },
        }

    def _model(self) -> str:
        model = self._found.model
        return f"{model.title}, with {model.num_parameters / 1e9:.3g} billion parameters"

    def _requests(self) -> str:
        """Describe the requests of one client, from any server that has them."""
        for server in self.titles:
            figures = self._summary.medians(server, "c1")
            if "num_prompt_tokens" in figures:
                each = figures["num_output_tokens"] / figures["num_requests"]
                return (
                    f"prompts of about {figures['num_prompt_tokens']:.0f} tokens and responses of "
                    f"{each:.0f}"
                )
        return "prompts and responses of a fixed length"

    def _limits(self) -> str:
        """Return the section on what bounds each speed."""
        limits = self._found.machine.limits
        if limits is None:
            return ""
        rows = []
        for name, title in self.titles.items():
            roofline = Roofline(limits, self._found.model, self._found.servers[name])
            single = self._summary.medians(name, "c1")
            loads = (self._summary.medians(name, column.load) for column in _RATES)
            shares = [
                f"{share(single):.0%}" if "num_clients" in single else ""
                for share in (roofline.decode_step, roofline.prefill)
            ]
            closer = [
                roofline.load(figures).text if "num_clients" in figures else "" for figures in loads
            ]
            rows.append([title, *shares, *closer])
        tops = ", ".join(f"{rate:.3g} TOP/s in {kind}" for kind, rate in limits.tops.items())
        columns = ["Decode step, bytes", "Prefill, arithmetic"]
        return (
            "### What bounds the speed\n\n"
            f"The machine reads {limits.read_gb_s:.3g} GB/s from memory, and computes {tops}.\n\n"
            + _markdown(["", *columns, *(column.title for column in _RATES)], rows)
            + "\n\n"
        )

    def _panel(self, column: Column, unit: str) -> Panel:
        figures = {
            name: self._summary.figure(name, column.load, column.figure) for name in self.titles
        }
        values = {name: figure.median for name, figure in figures.items() if figure}
        return Panel(column.title, unit, values)

    def _table(self, columns: Sequence[Column], corner: str) -> str:
        """Return a table with a row for each server, and a column for each measured figure."""
        columns = self._measured(columns)
        rows = (
            [title, *(self._cell(name, column) for column in columns)]
            for name, title in self.titles.items()
        )
        return _markdown(
            [corner, *(column.title for column in columns)], [row for row in rows if any(row[1:])]
        )

    def _measured(self, columns: Sequence[Column]) -> Sequence[Column]:
        """Return the columns whose load was sent to any of the servers."""
        loads = {sample.load for sample in self._found.samples if sample.target in self.titles}
        return [column for column in columns if column.load in loads]

    def _cell(self, target: str, column: Column) -> str:
        if figure := self._summary.figure(target, column.load, column.figure):
            return _spread(figure)
        return "invalid" if self._summary.fault(target, column.load) else ""

    def _ratios(self, columns: Sequence[Column]) -> str:
        """Return a table of ratios that are above 1 if our server is faster."""
        columns = self._measured(columns)
        rows = []
        for ours in self.ours:
            for peer, title in self.titles.items():
                if peer in self.ours:
                    continue
                cells = []
                for column in columns:
                    pair = (ours, peer) if column.is_rate else (peer, ours)
                    figure = self._summary.ratio(*pair, column.load, column.figure)
                    cells.append(_spread(figure) if figure else "")
                if any(cells):
                    rows.append([f"{self.titles[ours]} / {title}", *cells])
        return _markdown(["", *(column.title for column in columns)], rows)

    def _life(self) -> str:
        servers = self._found.servers.values()
        has_first = any(facts.first_ready_s for facts in servers)
        rows = []
        for facts in servers:
            idle = "" if facts.idle_cpu is None else f"{facts.idle_cpu:.0%}"
            first = [_with_unit(facts.first_ready_s, "s")] if has_first else []
            memory = _with_unit(facts.pss_mib, "MiB")
            rows.append([facts.title, _with_unit(facts.ready_s, "s"), *first, memory, idle])
        columns = ["Start", *(["First start"] if has_first else []), "Memory", "Idle"]
        return _markdown(["", *columns], rows)

    def _budgets(self) -> str:
        rows = [
            [
                budget.title,
                f"{budget.bound:g} {budget.unit}",
                f"{short(budget.measured)} {budget.unit}",
                "yes" if budget.is_kept else "**no**",
            ]
            for budget in budgets(self._summary)
        ]
        if not rows:
            return ""
        return (
            "### Budgets\n\nThe limits that chatrpc sets for itself.\n\n"
            + _markdown(["", "at most", "measured", "kept"], rows)
            + "\n\n"
        )

    def _layers(self) -> str:
        """Return the section on the three layers at 32 streams, each compared with the next one."""
        layers = {"bare engine": "/engine", "over gRPC": "/grpc", "through the gateway": ""}
        below: str | None = None
        rows = []
        for title, suffix in layers.items():
            target = OURS + suffix
            figure = self._summary.figure(target, "c32", "output_tok_s")
            if figure is None:
                return ""
            ratio = self._summary.ratio(target, below, "c32", "output_tok_s") if below else None
            cost = f"{1 - ratio.median:+.1%}" if ratio else ""
            rows.append([title, _spread(figure), cost])
            below = target
        return (
            "### Cost of the layers\n\nThe same load of 32 streams on the engine in its process, "
            "over gRPC, and over HTTP through the gateway.\n\n"
            + _markdown(["", "tok/s", "cost over the line above"], rows)
            + "\n\n"
        )

    def _drafts(self) -> str:
        """Return the section on the speed with and without drafts."""
        rows = [
            [self.titles[name], *(self._cell(name, replace(_EDIT, load=load)) for load in _DRAFTED)]
            for name in self.ours
        ]
        if not any(self._summary.has(name, _EDIT.load) for name in self.ours):
            return ""
        columns = (self._found.loads.get(load, "") for load in _DRAFTED)
        return (
            "### Drafts\n\nTokens per second of our own service. The load *repeat a text* is one "
            "client that requests a text again with a small change, for which speculative decoding "
            "by prompt lookup is intended. The other loads have random text.\n\n"
            + _markdown(["", *columns], rows)
            + "\n\n"
        )

    def _open_loop(self) -> str:
        """Return the section on requests that arrive independently of earlier ones."""
        loads = {k: title for k, title in self._found.loads.items() if k.startswith("open-")}
        if not any(self._summary.has(OURS, load) for load in loads):
            return ""
        parts = [
            self._table([replace(column, load=load) for column in _OPEN], title)
            for load, title in loads.items()
        ]
        return (
            "### Open loop\n\nRequests with prompts of 150 tokens and responses of 64 arrive "
            "as a Poisson process, independent of earlier ones. TTFT is measured from when a "
            "request was due. Times are in milliseconds.\n\n" + "\n\n".join(parts) + "\n\n"
        )

    def _knees(self) -> str:
        """Return the section on the highest rates that servers hold."""
        found = self._found
        if found.bounds is None:
            return ""
        knees = [
            [facts.title, "none" if facts.knee is None else short(facts.knee)]
            for name, facts in found.servers.items()
            if any(s.target == name and s.load.startswith(PREFIX) for s in found.samples)
        ]
        rows = []
        for sample in sorted(found.samples, key=lambda s: (s.target, s.figures.get("rate", 0.0))):
            if sample.load.startswith(PREFIX):
                cells = (
                    short(sample.figures[column.figure]) if sample.figures else "invalid"
                    for column in _OPEN
                )
                title = found.servers[sample.target].title
                rows.append([f"{title}, {found.loads[sample.load]}", *cells])
        return (
            "### Rates\n\nRequests arrive as a Poisson process, independent of earlier ones. TTFT "
            "is measured from when a request was due. The knee is the highest rate that was tried "
            f"at which the server stayed within bounds: {found.bounds.text}.\n\n"
            + _markdown(["", "Knee, requests a second"], knees)
            + "\n\n"
            + _markdown(["", *(column.title for column in _OPEN)], rows)
            + "\n\n"
        )


_ALTS = {
    "throughput": "Output tokens per second of each server at 1, 8 and 32 clients and long prompts",
    "latency": "Times to first and next token of each server",
    "life": "Start times and memory of each server",
}


def _facts_panel(title: str, unit: str, servers: dict[str, ServerFacts], name: str) -> Panel:
    known = {server: getattr(facts, name) for server, facts in servers.items()}
    return Panel(title, unit, {server: value for server, value in known.items() if value})


def _machine(machine: Machine) -> str:
    flags = ", ".join(f"`{flag}`" for flag in machine.flags)
    return (
        f"{machine.cpu}, {machine.num_cores} cores ({flags}), {machine.memory_gib:g} GiB, "
        f"Linux {machine.kernel}, CPython {machine.python}. No accelerator."
    )


def _servers(servers: dict[str, ServerFacts]) -> str:
    lines = []
    for facts in servers.values():
        failure = f" **Not measured completely: {facts.failure}**" if facts.failure else ""
        lines.append(f"- **{facts.title}**, {facts.version}: {facts.settings}.{failure}")
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("--:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _spread(figure: Figure) -> str:
    if figure.num_rounds == 1:
        return short(figure.median)
    return f"**{short(figure.median)}** ({short(figure.low)}-{short(figure.high)})"


def _with_unit(value: float | None, unit: str) -> str:
    return "" if value is None else f"{short(value)} {unit}"


def _share(figure: Figure | None) -> str:
    return f"{figure.median:.1%} (at most {figure.high:.1%})" if figure else "an unknown share"
