"""The definitions of all figures. Times are in seconds, but those in `figures` in milliseconds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.request import Record

PERCENTILES = (50, 90, 99)


def ttft(record: Record) -> float:
    """Return the time to first token: from the due time to the first text.

    In a closed loop a request is due when it is sent. In an open loop it is due at its scheduled
    time, so that a late client does not make the server look faster.
    """
    return record.arrivals_s[0] - record.due_s


def tpot(record: Record) -> float:
    """Return the time per output token: (last arrival - first arrival) / (tokens - 1).

    Tokens are counted by the server's usage, since one delta may have several tokens.
    """
    return (record.arrivals_s[-1] - record.arrivals_s[0]) / (record.num_output_tokens - 1)


def itl(record: Record) -> list[float]:
    """Return the inter-token latencies: the times between consecutive arrivals of text.

    A user sees these times. If deltas have several tokens, they are longer than the time per token.
    """
    return [after - before for before, after in pairwise(record.arrivals_s)]


def latency(record: Record) -> float:
    """Return the end-to-end time: from when the request was due to the arrival of the last text."""
    return record.arrivals_s[-1] - record.due_s


def duration(records: Sequence[Record]) -> float:
    """Return the time from when the first request was due to the arrival of the last text."""
    return max(r.arrivals_s[-1] for r in records) - min(r.due_s for r in records)


def throughput(records: Sequence[Record]) -> float:
    """Return output tokens per second: all tokens over `duration`, including ramps at both ends."""
    return sum(r.num_output_tokens for r in records) / duration(records)


def worst_gap(record: Record, since_s: float, until_s: float) -> float:
    """Return the longest time between two arrivals of a stream that overlaps the window."""
    gaps = (b - a for a, b in pairwise(record.arrivals_s) if b > since_s and a < until_s)
    return max(gaps, default=0.0)


def percentiles(name: str, values_s: Sequence[float]) -> dict[str, float]:
    """Return `name.p50`, `.p90`, `.p99`, by linear interpolation, and `.max`, in milliseconds."""
    if not values_s:
        return {}
    found = np.percentile(np.asarray(values_s) * 1000, [*PERCENTILES, 100])
    names = (*(f"{name}.p{p}" for p in PERCENTILES), f"{name}.max")
    return dict(zip(names, map(float, found), strict=True))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one load against one server: figures by name, or why they are invalid."""

    figures: Mapping[str, float]
    fault: str | None = None


def outcome(records: Sequence[Record], extra: Mapping[str, float] | None = None) -> Outcome:
    """Return the figures of a load, and `extra`. If a response is wrong, they are invalid."""
    if fault := first_fault(records):
        return Outcome({}, fault)
    return Outcome({**figures(records), **(extra or {})})


def first_fault(records: Sequence[Record]) -> str | None:
    faults = [fault for record in records if (fault := record.fault)]
    if not records:
        return "no request was sent"
    return f"{len(faults)} of {len(records)} requests: {faults[0]}" if faults else None


def figures(records: Sequence[Record]) -> dict[str, float]:
    """Return all figures of a load. All of its responses must be as requested."""
    several = [record for record in records if record.num_output_tokens > 1]
    return {
        "num_requests": float(len(records)),
        "num_output_tokens": float(sum(r.num_output_tokens for r in records)),
        "num_prompt_tokens": _median(r.num_prompt_tokens for r in records),
        "num_cached_tokens": _median(r.num_cached_tokens for r in records),
        "duration_s": duration(records),
        "output_tok_s": throughput(records),
        "requests_s": len(records) / duration(records),
        **percentiles("ttft_ms", [ttft(r) for r in records]),
        **percentiles("tpot_ms", [tpot(r) for r in several]),
        **percentiles("itl_ms", [gap for r in records for gap in itl(r)]),
        **percentiles("latency_ms", [latency(r) for r in records]),
    }


def _median(values: Iterable[float]) -> float:
    return float(np.median(list(values)))
