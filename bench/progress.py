"""A progress bar and the lines that a run prints."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from bench.results import Sample

# The figure that is printed for a load, and its unit. The report has the others.
_HEADLINES = {"turns": ("turn2_over_turn1", ""), "stall": ("stall_ms", " ms")}


class Progress:
    """A progress bar. It is drawn only twice a second, since it shares cores with the server."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
            transient=True,
        )
        self._task = self._bars.add_task("", total=None, visible=False)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    @contextmanager
    def load(self, title: str, target: str, num_requests: int | None) -> Iterator[None]:
        """Show a running load. `num_requests` is None if their number is unknown."""
        self._bars.reset(
            self._task, description=f"{title}, {target}", total=num_requests, visible=True
        )
        try:
            yield
        finally:
            self._bars.update(self._task, visible=False)

    def on_done(self) -> None:
        """Count one complete request."""
        self._bars.advance(self._task)

    def print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)

    def sample(self, sample: Sample, title: str) -> None:
        if sample.fault:
            text = f"not counted: {sample.fault}"
        else:
            name, unit = _HEADLINES.get(sample.load, ("output_tok_s", " tok/s"))
            text = f"{sample.figures[name]:.4g}{unit}"
        others = sample.cpu.get("others", 0.0)
        noise = f" (others took {others:.0%} of the cores)" if others > 0.05 else ""
        self.print(f"{sample.round + 1}  {title:26} {sample.target:24} {text}{noise}")
