"""Figures over several rounds: median, spread, and ratio to another server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Results, Sample

# A sample is not representative if other processes used a larger share of the cores.
_MOST_FOR_OTHERS = 0.2


@dataclass(frozen=True, slots=True)
class Figure:
    """The median over the rounds, and the lowest and highest value."""

    median: float
    low: float
    high: float
    num_rounds: int


class Summary:
    """A run's figures by target, load and name."""

    def __init__(self, results: Results) -> None:
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        for sample in results.samples:
            self._samples.setdefault((sample.target, sample.load), []).append(sample)

    def has(self, target: str, load: str) -> bool:
        return bool(self._valid(target, load))

    def fault(self, target: str, load: str) -> str | None:
        """Return why a load that was run has no figures, or None if it has figures."""
        samples = self._samples.get((target, load), [])
        faults = [sample.fault for sample in samples if sample.fault]
        return faults[0] if faults else None

    def figure(self, target: str, load: str, name: str) -> Figure | None:
        return _figure([s.figures[name] for s in self._valid(target, load) if name in s.figures])

    def medians(self, target: str, load: str) -> dict[str, float]:
        """Return the median of every figure of a load, or nothing if there are none."""
        samples = self._valid(target, load)
        names = samples[0].figures if samples else {}
        return {
            name: median(s.figures[name] for s in samples)
            for name in names
            if all(name in s.figures for s in samples)
        }

    def ratio(self, target: str, to: str, load: str, name: str) -> Figure | None:
        """Return the median over the rounds of the ratio of `target` to `to`.

        The ratio is taken within each round: if the machine is slow for a while, it is slow for
        both.
        """
        theirs, ours = self._by_round(target, load, name), self._by_round(to, load, name)
        return _figure([theirs[r] / ours[r] for r in theirs.keys() & ours.keys() if ours[r]])

    def cpu_s_per_1000_tokens(self, target: str, load: str, num_cores: int) -> Figure | None:
        """Return the CPU seconds of all processes of a server for 1000 generated tokens."""
        return _figure(
            [
                1000 * s.cpu["server"] * num_cores / s.figures["output_tok_s"]
                for s in self._valid(target, load)
                if "server" in s.cpu and s.figures.get("output_tok_s")
            ]
        )

    def cpu(self, share: str) -> Figure | None:
        """Return the share of all cores that one side uses, over all valid samples.

        Args:
            share: "server", "client" or "others".
        """
        samples = [sample for group in self._samples.values() for sample in group]
        return _figure([s.cpu[share] for s in samples if share in s.cpu and not s.fault])

    def _valid(self, target: str, load: str) -> Sequence[Sample]:
        """Return the valid samples, without disturbed ones if there are others."""
        samples = [s for s in self._samples.get((target, load), []) if not s.fault]
        return [s for s in samples if s.cpu.get("others", 0.0) <= _MOST_FOR_OTHERS] or samples

    def _by_round(self, target: str, load: str, name: str) -> Mapping[int, float]:
        return {s.round: s.figures[name] for s in self._valid(target, load) if name in s.figures}


def _figure(values: Sequence[float]) -> Figure | None:
    if not values:
        return None
    return Figure(median(values), min(values), max(values), len(values))
