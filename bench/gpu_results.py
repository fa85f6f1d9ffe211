"""The results of `python -m bench gpu`: one JSON file, and a page made of it."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec


class Environment(msgspec.Struct, frozen=True):
    """The software and the device of a run. A CPU has no CUDA version and no capability."""

    device: str
    memory_gib: float
    capability: str | None
    cuda: str | None
    torch: str
    transformers: str
    python: str


class KernelCheck(msgspec.Struct, frozen=True):
    """The check of torch's kernel for one shape. `problem` is None if its results are right."""

    shape: str
    problem: str | None


class Parity(msgspec.Struct, frozen=True):
    """The outputs of the engine compared with those of transformers' `generate`, both greedy.

    Attributes:
        num_equal_outputs: Outputs that are equal in all tokens, of prompts computed together.
        num_tokens: Number of positions whose most likely tokens are compared. Both models got the
            tokens that transformers generated.
        num_equal_tokens: Positions with the same most likely token.
        mean_error: Mean absolute error of the log probabilities of these tokens, against
            transformers in float32.
        reference_error: The same error of transformers in bfloat16.
        max_difference: The largest difference between the engine and transformers in bfloat16.
    """

    num_outputs: int
    num_equal_outputs: int
    num_tokens: int
    num_equal_tokens: int
    mean_error: float
    reference_error: float
    max_difference: float


class Steps(msgspec.Struct, frozen=True):
    """Decode steps of one set of sequences.

    Attributes:
        ms: Median duration of a step.
        waits: Number of waits for the device in a step; None if they cannot be counted.
        skipped: The reason why it was not measured.
    """

    title: str
    num_sequences: int
    ms: float | None = None
    waits: float | None = None
    skipped: str | None = None


class Prefill(msgspec.Struct, frozen=True):
    """Prompts that arrive together, until each has its first token."""

    title: str
    num_tokens: int
    seconds: float | None = None
    skipped: str | None = None


class Memory(msgspec.Struct, frozen=True):
    """Memory of the device, in GiB. The peak includes everything that torch has allocated."""

    weights: float
    cache: float
    peak: float
    total: float


class ModelFigures(msgspec.Struct, frozen=True):
    """The figures of one model, measured in a process of its own."""

    model: str
    environment: Environment
    checks: list[KernelCheck]
    parity: Parity
    steps: list[Steps]
    prefills: list[Prefill]
    memory: Memory | None


class ServedLoad(msgspec.Struct, frozen=True):
    """A load over HTTP against a server. `fault` is the reason why there are no figures."""

    server: str
    load: str
    figures: dict[str, float] = {}
    fault: str | None = None


class GpuReport(msgspec.Struct):
    """A run. `failures` has the last line of each process that failed, by what it measured."""

    started: str  # UTC
    is_quick: bool
    models: list[ModelFigures] = []
    served: list[ServedLoad] = []
    failures: dict[str, str] = {}


def page(report: GpuReport) -> str:
    """Return the report in Markdown."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: GpuReport) -> Iterator[str]:
    yield f"# GPU report of {report.started}" + (" (quick)" if report.is_quick else "")
    for name, failure in report.failures.items():
        yield from ("", f"**{name} failed:** {failure}")
    for figures in report.models:
        yield from _model_lines(figures)
    if report.served:
        yield from ("", "## Served over HTTP", "")
        names = ("output_tok_s", "ttft_ms.p50", "ttft_ms.p99", "tpot_ms.p50", "itl_ms.p99")
        yield from _table(
            ("server", "load", *names),
            (
                (s.server, s.load, *(s.fault or _number(s.figures.get(name)) for name in names))
                for s in report.served
            ),
        )


def _model_lines(figures: ModelFigures) -> Iterator[str]:
    e, parity = figures.environment, figures.parity
    yield from ("", f"## {figures.model}", "")
    capability = f"capability {e.capability}, CUDA {e.cuda}, " if e.capability else ""
    yield (
        f"{e.device}, {e.memory_gib:.0f} GiB, {capability}torch {e.torch}, transformers "
        f"{e.transformers}, Python {e.python}"
    )
    yield ""
    for check in figures.checks:
        yield f"- kernel, {check.shape}: {check.problem or 'right'}"
    yield (
        f"- parity: {parity.num_equal_outputs} of {parity.num_outputs} outputs are equal; "
        f"{parity.num_equal_tokens} of {parity.num_tokens} tokens; mean error of log "
        f"probabilities {parity.mean_error:.4f}, of transformers {parity.reference_error:.4f}; "
        f"largest difference between the two {parity.max_difference:.3f}"
    )
    if (memory := figures.memory) is not None:
        yield (
            f"- memory: weights {memory.weights:.2f}, cache {memory.cache:.2f}, peak "
            f"{memory.peak:.2f} of {memory.total:.1f} GiB"
        )
    yield ""
    yield from _table(
        ("decode", "sequences", "ms a step", "tokens/s", "waits a step"),
        (
            (
                s.title,
                str(s.num_sequences),
                s.skipped or _number(s.ms),
                _number(None if s.ms is None else s.num_sequences / s.ms * 1000),
                _number(s.waits),
            )
            for s in figures.steps
        ),
    )
    yield ""
    yield from _table(
        ("prefill", "tokens", "seconds", "tokens/s"),
        (
            (
                p.title,
                str(p.num_tokens),
                p.skipped or _number(p.seconds),
                _number(None if p.seconds is None else p.num_tokens / p.seconds),
            )
            for p in figures.prefills
        ),
    )


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(titles) + " |"
    yield "|" + "---|" * len(titles)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
