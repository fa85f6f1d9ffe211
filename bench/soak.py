"""A soak test: many clients for a long time.

Each client sends its next request when its last one is complete. Requests differ in length, and one
in twenty is cancelled before its end, as by real users. The server must return no error, its memory
must not grow once it is warm, and all clients must get the same service.
"""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from bench import metrics
from bench.loadgen import OnDone, exchange
from bench.metrics import Outcome
from bench.process import ProcessGroup
from bench.request import Client, Transcript, ask
from bench.words import words

MAX_GROWTH = 0.05
LEAST_FAIRNESS = 0.8

_SAMPLE_S = 5.0
_LEAVING_SHARE = 0.05
_PROMPT_WORDS = (8, 240)
_NUM_TOKENS = (8, 72)


class Soak(msgspec.Struct, frozen=True):
    """The results: figures of requests after the warm-up, all faults, and samples of memory.

    `growth` is the growth of a process's memory (PSS): the median of the last quarter of samples,
    divided by that of the first quarter, minus one. `fairness` is Jain's index of the tokens that
    each client got: 1 if all got the same number, 1 / clients if one got all
    (https://arxiv.org/abs/cs/9809099).
    """

    num_clients: int
    duration_s: float
    figures: dict[str, float]
    growth: dict[str, float]
    pss_mib: dict[str, list[float]]
    faults: list[str]

    @property
    def outcome(self) -> Outcome:
        growths = {f"growth of {name}": growth for name, growth in self.growth.items()}
        return Outcome({**self.figures, **growths}, self._fault())

    def _fault(self) -> str | None:
        if self.faults:
            return f"{len(self.faults)} requests: {self.faults[0]}"
        if not self.figures["num_requests"] or not self.growth:
            return "nothing was measured"
        if self.figures["fairness"] < LEAST_FAIRNESS or not self.figures["least_tokens"]:
            return f"some got much less than others: fairness {self.figures['fairness']:.2f}"
        for name, growth in self.growth.items():
            if growth > MAX_GROWTH:
                return f"the memory of {name} grew by {growth:.1%}"
        return None


@dataclass(slots=True)
class _Tally:
    """The counts of one client."""

    num_left: int = 0
    num_tokens: list[int] = field(default_factory=list)
    ttft_s: list[float] = field(default_factory=list)
    latency_s: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


async def soak(
    client: Client,
    group: ProcessGroup,
    *,
    num_clients: int,
    warm_up_s: float,
    duration_s: float,
    seed: int = 0,
    on_done: OnDone = lambda: None,
    sample_s: float = _SAMPLE_S,
) -> Soak:
    """Run `num_clients` concurrent clients for `warm_up_s` and then for `duration_s`.

    The warm-up is not measured. Requests that run at the end are completed and counted. Faults are
    counted during the warm-up, too.
    """
    start_s = time.perf_counter() + warm_up_s
    end_s = start_s + duration_s
    tallies = [_Tally() for _ in range(num_clients)]

    async def one_client(index: int, tally: _Tally) -> None:
        rng = random.Random(f"{seed} {index}")
        while time.perf_counter() < end_s:
            await _one_request(client, rng, tally, start_s)
            on_done()

    async with asyncio.TaskGroup() as tasks:
        memory = tasks.create_task(_memory(group, start_s, end_s, sample_s))
        for index, tally in enumerate(tallies):
            tasks.create_task(one_client(index, tally))
    return _result(tallies, memory.result(), duration_s)


async def _one_request(client: Client, rng: random.Random, tally: _Tally, start_s: float) -> None:
    # Records are evaluated at once and dropped: the records of hours would not fit into memory.
    request = ask(words(rng.randint(*_PROMPT_WORDS), rng), rng.randint(*_NUM_TOKENS))
    transcript = Transcript(request)
    if rng.random() < _LEAVING_SHARE:
        transcript.due_s = time.perf_counter()
        with suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0.0, 30.0)):
                await client.send(transcript)
            return
        tally.num_left += 1
        if transcript.error:
            tally.faults.append(transcript.error)
        return
    await exchange(client, transcript)
    record = client.read(transcript)
    if record.fault is not None:
        tally.faults.append(record.fault)
    elif record.due_s >= start_s:
        tally.num_tokens.append(record.num_output_tokens)
        tally.ttft_s.append(metrics.ttft(record))
        tally.latency_s.append(metrics.latency(record))


async def _memory(
    group: ProcessGroup, start_s: float, end_s: float, sample_s: float
) -> dict[str, list[float]]:
    """Return the PSS of each process in MiB, sampled every few seconds."""
    samples: dict[str, list[float]] = {}
    await asyncio.sleep(start_s - time.perf_counter())
    while time.perf_counter() < end_s:
        for name, pss in group.pss_by_command().items():
            samples.setdefault(name, []).append(round(pss / 2**20, 1))
        await asyncio.sleep(sample_s)
    return samples


def _result(tallies: Sequence[_Tally], pss_mib: dict[str, list[float]], duration_s: float) -> Soak:
    tokens = [sum(tally.num_tokens) for tally in tallies]
    return Soak(
        num_clients=len(tallies),
        duration_s=duration_s,
        figures={
            "num_requests": float(sum(len(tally.num_tokens) for tally in tallies)),
            "num_left": float(sum(tally.num_left for tally in tallies)),
            "num_output_tokens": float(sum(tokens)),
            "fairness": fairness(tokens),
            "least_tokens": float(min(tokens)),
            "most_tokens": float(max(tokens)),
            **metrics.percentiles("ttft_ms", [s for tally in tallies for s in tally.ttft_s]),
            **metrics.percentiles("latency_ms", [s for tally in tallies for s in tally.latency_s]),
        },
        growth={name: growth(samples) for name, samples in pss_mib.items()},
        pss_mib=pss_mib,
        faults=[fault for tally in tallies for fault in tally.faults],
    )


def fairness(shares: Sequence[float]) -> float:
    """Return Jain's fairness index of the shares."""
    squares = len(shares) * sum(share * share for share in shares)
    return sum(shares) ** 2 / squares if squares else 1.0


def growth(samples: Sequence[float]) -> float:
    """Return the growth from the median of the first quarter of samples to that of the last."""
    quarter = max(1, len(samples) // 4)
    return statistics.median(samples[-quarter:]) / statistics.median(samples[:quarter]) - 1
