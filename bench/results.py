"""The results of a run: one JSON file, from which the report is rendered."""

from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """The facts about a machine that affect the figures."""

    cpu: str
    num_cores: int
    flags: list[str]
    memory_gib: float
    kernel: str
    python: str


class ServerFacts(msgspec.Struct, frozen=True):
    """A server of the run: its description, and the figures that are measured only once.

    Attributes:
        ready_s: Seconds from the start of its processes to its first response, with caches of
            earlier starts.
        first_ready_s: The same time without these caches. The model is on disk.
        idle_cpu: The share of one core that it uses without requests.
        pss_mib: The proportional set size of all its processes after the load of 32 clients.
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
    duration_s: float = 0.0
    num_rounds: int = 0
    is_quick: bool = False
    loads: dict[str, str] = {}  # titles by name
    servers: dict[str, ServerFacts] = {}
    samples: list[Sample] = []


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def write(results: Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1) + b"\n")


def merged(runs: list[Results]) -> Results:
    """Merge several runs: later ones replace servers and add loads. Rounds are renumbered."""
    first, *others = runs
    for run in others:
        first.servers = {**first.servers, **run.servers}
        first.loads = {**first.loads, **run.loads}
        first.samples += [
            msgspec.structs.replace(sample, round=sample.round + first.num_rounds)
            for sample in run.samples
        ]
        first.num_rounds += run.num_rounds
        first.duration_s += run.duration_s
        first.is_quick = first.is_quick or run.is_quick
    return first
