"""The results of a run: one JSON file, from which the report is rendered."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.metrics import Outcome


class Limits(msgspec.Struct, frozen=True):
    """The limits of a machine, measured by `bench.limits` with all cores.

    Attributes:
        read_gb_s: Bytes that are read from memory, in 10**9 a second.
        tops: Operations in 10**12 a second, by type: `int8` and `bf16`. A multiplication and an
            addition are two operations.
    """

    read_gb_s: float
    tops: dict[str, float]


class Machine(msgspec.Struct, frozen=True):
    """The facts about a machine that affect the figures."""

    cpu: str
    num_cores: int
    flags: list[str]
    memory_gib: float
    kernel: str
    python: str
    limits: Limits | None = None

    @property
    def has_amx(self) -> bool:
        """The CPU has AMX, Intel's matrix unit, for products in int8."""
        return "amx_int8" in self.flags


class ModelFacts(msgspec.Struct, frozen=True):
    """The model of a run.

    Attributes:
        name: Its id in requests.
        num_layer_weights: Weights of the layers, without embeddings and head.
        num_head_weights: Weights of the head, which may be those of the embedding.
        kv_bytes_per_token: Bytes of keys and values for each token of the context, in 16 bits.
        attention_operations_per_position: Operations of the attention of one token to one position.
    """

    name: str
    title: str
    num_parameters: int
    num_layer_weights: int
    num_head_weights: int
    kv_bytes_per_token: int
    attention_operations_per_position: int


class Bounds(msgspec.Struct, frozen=True):
    """The bounds within which a rate of requests counts as served, in milliseconds."""

    ttft_p99_ms: float
    tpot_p50_ms: float

    @property
    def text(self) -> str:
        return f"TTFT p99 <= {self.ttft_p99_ms:g} ms, TPOT p50 <= {self.tpot_p50_ms:g} ms"

    def holds(self, outcome: Outcome) -> bool:
        """Return whether the figures are within the bounds. Invalid ones are not."""
        figures = outcome.figures
        return (
            outcome.fault is None
            and figures["ttft_ms.p99"] <= self.ttft_p99_ms
            and figures["tpot_ms.p50"] <= self.tpot_p50_ms
        )


class ServerFacts(msgspec.Struct, frozen=True):
    """A server of the run: its description, and the figures that are measured only once.

    Attributes:
        ready_s: Seconds from the start of its processes to its first response, with caches of
            earlier starts.
        first_ready_s: The same time without these caches. The model is on disk.
        idle_cpu: The share of one core that it uses without requests.
        pss_mib: The proportional set size of all its processes after the load of 32 clients.
        weight_bytes: Bytes of the weights that it reads in a decode step. None if unknown.
        arithmetic: The type of its matrix products: `int8` or `bf16`.
        knee: The highest rate of requests a second that it serves within the bounds of the run.
        failure: The reason why it was not measured, or not completely.
    """

    title: str
    version: str
    settings: str
    ready_s: float | None = None
    first_ready_s: float | None = None
    idle_cpu: float | None = None
    pss_mib: float | None = None
    failure: str | None = None
    weight_bytes: int | None = None
    arithmetic: str = "bf16"
    knee: float | None = None


class Sample(msgspec.Struct, frozen=True):
    """A load against one target in one round. `fault` is the reason why it is not counted.

    `cpu` has the shares of all cores during the load: server, client and others.
    """

    target: str
    load: str
    round: int
    figures: dict[str, float] = {}
    cpu: dict[str, float] = {}
    fault: str | None = None


class Results(msgspec.Struct):
    """A run. A target is a server's name, followed by `/grpc` or `/engine` for a layer of ours."""

    started: str  # UTC
    machine: Machine
    model: ModelFacts
    duration_s: float = 0.0
    num_rounds: int = 0
    bounds: Bounds | None = None  # of the knees
    size: str = "full"  # of the loads
    loads: dict[str, str] = {}  # titles by name
    servers: dict[str, ServerFacts] = {}
    samples: list[Sample] = []
    note: str = ""  # what the report adds about this run

    def set_facts(self, server: str, **facts: Any) -> None:
        """Replace some of the facts about a server."""
        self.servers[server] = msgspec.structs.replace(self.servers[server], **facts)


def now() -> str:
    """Return the present time, for `Results.started`."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def write(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def merged(runs: list[Results]) -> Results:
    """Merge several runs of a model. Rounds are renumbered.

    Later runs add servers, loads and facts that were not measured before, and replace others.
    """
    first, *others = runs
    for run in others:
        servers = {
            name: _combined(first.servers[name], facts) if name in first.servers else facts
            for name, facts in run.servers.items()
        }
        first.servers = {**first.servers, **servers}
        first.loads = {**first.loads, **run.loads}
        first.bounds = run.bounds or first.bounds
        first.samples += [
            msgspec.structs.replace(sample, round=sample.round + first.num_rounds)
            for sample in run.samples
        ]
        first.num_rounds += run.num_rounds
        first.duration_s += run.duration_s
        first.size = first.size if first.size == run.size else "mixed"
    return first


def _combined(earlier: ServerFacts, later: ServerFacts) -> ServerFacts:
    """Return the later facts, with those of the earlier ones that it lacks."""
    known = {
        name: value
        for name, value in msgspec.structs.asdict(earlier).items()
        if getattr(later, name) is None
    }
    return msgspec.structs.replace(later, **known)
