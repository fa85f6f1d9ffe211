"""Measures how long contexts slow down decoding, for each type of the KV cache.

A step of the engine is measured over a cache of random numbers, so no prompt has to be computed
first. The steps of the types alternate, so that a change of the machine's speed affects all types.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import torch

from bench import machine
from service.domain.engine import Request
from service.domain.engine_settings import KVCacheDType
from service.domain.sampling import SamplingParams
from service.engine.batch import Batch, ScheduledSequence
from service.engine.load import EngineOptions, load_model
from service.engine.model_runner import LoadedModel, ModelRunner
from service.engine.sequence import Sequence as EngineSequence

CACHES: tuple[KVCacheDType, ...] = ("bfloat16", "int8")
_BLOCK_SIZE = 32
_GREEDY = SamplingParams(temperature=0.0)


class ContextRow(msgspec.Struct, frozen=True):
    """Output tokens per second of all sequences together, by type of the cache."""

    num_sequences: int
    context_len: int
    tokens_per_s: dict[str, float]


def measure(
    path: Path,
    context_lens: Sequence[int],
    nums_sequences: Sequence[int],
    num_steps: int,
    progress: Callable[[str], None],
) -> list[ContextRow]:
    """Measure the model in the directory `path` on a CPU.

    Args:
        num_steps: Number of steps of each type of the cache; the median counts.
        progress: Called with a line for each row.
    """
    models = {kv: load_model(EngineOptions(path, device="cpu", kv_cache_dtype=kv)) for kv in CACHES}
    rows = []
    for num_sequences in nums_sequences:
        for context_len in context_lens:
            progress(f"{num_sequences} sequences of {context_len} tokens")
            steps = {kv: _step(model, num_sequences, context_len) for kv, model in models.items()}
            times = _alternating(steps, num_steps)
            rates = {kv: num_sequences / median for kv, median in times.items()}
            rows.append(ContextRow(num_sequences, context_len, rates))
    return rows


def page(model_name: str, rows: Sequence[ContextRow]) -> str:
    """Return the results as a page of documentation."""
    facts = machine.facts()
    speeds = " | ".join(f"{kv} cache, tok/s" for kv in CACHES)
    lines = [
        "# Benchmarks: long contexts",
        "",
        "This page is written by `python -m bench context`. It shows the output tokens per second",
        "of all sequences together, from the duration of a decode step over a cache of random",
        "numbers.",
        "",
        f"- **Model**: {model_name}, with the default quantization.",
        f"- **Machine**: {facts.num_cores} cores, {facts.cpu}, {facts.memory_gib} GiB.",
        f"- **Instructions**: {', '.join(facts.flags)}.",
        "",
        f"| sequences | tokens of context | {speeds} | int8 / bfloat16 |",
        "|---" * (3 + len(CACHES)) + "|",
    ]
    for row in rows:
        rates = [row.tokens_per_s[kv] for kv in CACHES]
        cells = [f"{rate:.1f}" for rate in rates] + [f"{rates[1] / rates[0]:.2f}"]
        lines.append(f"| {row.num_sequences} | {row.context_len} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _step(model: LoadedModel, num_sequences: int, context_len: int) -> Callable[[], object]:
    """Return a function that computes the token after `context_len` others in each sequence."""
    blocks = -(-(context_len + 1) // _BLOCK_SIZE)
    finished = model.finish(num_sequences * blocks, _BLOCK_SIZE, context_len + 2)
    _randomize(finished.block_tensors())
    runner = ModelRunner(finished)
    order = torch.randperm(num_sequences * blocks).tolist()  # as in a cache that has been in use
    scheduled = []
    for index in range(num_sequences):
        sequence = EngineSequence(
            index, Request((1,) * (context_len + 1), _GREEDY), context_len + 2
        )
        sequence.num_computed_tokens = context_len
        sequence.block_ids = order[index * blocks : (index + 1) * blocks]
        scheduled.append(ScheduledSequence(sequence, 1, is_sampled=True))
    batch = Batch(tuple(scheduled))
    return lambda: runner.run(batch)


def _randomize(tensors: Iterable[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_floating_point():
            tensor.uniform_(0.001, 0.02)
        else:
            tensor.random_()


def _alternating(steps: dict[KVCacheDType, Callable[[], object]], num: int) -> dict[str, float]:
    """Return the median duration of each step, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(num + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: sorted(values)[len(values) // 2] for name, values in times.items()}
