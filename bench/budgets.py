"""The budgets of our own service, and a comparison of a run with them."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.summary import Summary

_OURS = "chatrpc"
# Maximum pause of a running stream, in milliseconds. Running streams get a token in every step, and
# a step computes at most 512 prompt tokens. The machine for which this was set, with two cores,
# needs about 200 ms for such a step.
_STALL_MS = 400
_LAYER_COST = 0.05


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound and the measured value, both in `unit`."""

    title: str
    bound: float
    measured: float
    unit: str

    @property
    def is_kept(self) -> bool:
        return self.measured <= self.bound


def budgets(summary: Summary) -> Iterator[Budget]:
    """Yield the budgets for which the run has figures."""
    layers = (
        ("gRPC service over bare engine", "/grpc", "/engine"),
        ("gateway over gRPC", "", "/grpc"),
    )
    for title, above, below in layers:
        if ratio := summary.ratio(_OURS + above, _OURS + below, "c32", "output_tok_s"):
            cost = 100 * (1 - ratio.median)
            yield Budget(f"{title}, 32 streams", 100 * _LAYER_COST, cost, "% of throughput")
    if stall := summary.figure(_OURS, "stall", "stall_ms"):
        yield Budget(
            "worst gap of a running stream during the prefill of a 4000-token prompt",
            _STALL_MS,
            stall.median,
            "ms",
        )
