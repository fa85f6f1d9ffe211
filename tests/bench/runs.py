"""Makes invented results of a small run."""

from bench.results import Limits, Machine, ModelFacts, Results, Sample, ServerFacts

MACHINE = Machine(
    "A CPU", 2, ["avx2"], 24.0, "6.1", "3.11.7", Limits(20.0, {"int8": 1.0, "bf16": 0.5})
)
MODEL = ModelFacts("tiny", "A tiny model", 110_000, 100_000, 10_000, 100, 10)
CPU = {"server": 0.8, "client": 0.02, "others": 0.01}


def facts(title: str, ready_s: float | None = 3.0, failure: str | None = None) -> ServerFacts:
    return ServerFacts(title, "1.0", "as it comes", ready_s, None, 0.001, 512.0, failure)


def sample(target: str, load: str, index: int, **figures: float) -> Sample:
    """Return a sample with `figures`. Two underscores stand for a dot: `ttft_ms__p50`."""
    named = {name.replace("__", "."): value for name, value in figures.items()}
    return Sample(target, load, index, named, CPU)


def results() -> Results:
    """Return two rounds. Our server is twice as fast as one peer, and the other peer fails."""
    samples = []
    for index, speed in enumerate((100.0, 300.0)):
        for target, factor in (("chatrpc", 2.0), ("peer", 1.0)):
            rate = {"output_tok_s": speed * factor, "ttft_ms__p50": 1000 / speed / factor}
            samples += [sample(target, load, index, **rate) for load in ("c1", "c8", "c32")]
            samples.append(sample(target, "stall", index, stall_ms=50.0, long_ttft_ms=1000.0))
            samples.append(sample(target, "open-2", index, **rate))
        samples.append(sample("chatrpc/grpc", "c32", index, output_tok_s=speed * 2.1))
        samples.append(sample("chatrpc/engine", "c32", index, output_tok_s=speed * 2.2))
    samples.append(sample("broken", "c1", 0, output_tok_s=1.0))
    fault = "1 of 8 requests: 3 tokens instead of 64"
    samples.append(Sample("broken", "c8", 0, fault=fault))
    return Results(
        started="2026-01-02T03:04:05+00:00",
        machine=MACHINE,
        model=MODEL,
        num_rounds=2,
        loads={"c1": "1 client", "c8": "8", "c32": "32", "stall": "stall", "open-2": "2 a second"},
        servers={
            "chatrpc": facts("chatrpc"),
            "peer": facts("Peer, bf16"),
            "broken": facts("Broken"),
            "absent": facts("Absent", None, "does not start: exit code 1: no"),
        },
        samples=samples,
    )
