"""What a run leaves behind: one JSON file, from which the report is made."""

from pathlib import Path

import msgspec


class Machine(msgspec.Struct, frozen=True):
    """The facts of a machine that its figures depend on."""

    cpu: str
    num_cores: int
    flags: list[str]
    memory_gib: float
    kernel: str
    python: str


class ServerFacts(msgspec.Struct, frozen=True):
    """A server of the run: what it was, and what is measured of it once.

    `ready_s`: from starting its processes to its first answer, with caches from earlier starts.
    `first_ready_s`: the same with none, the model being on disk. `idle_cpu`: the share of one core
    used when nobody asks for anything. `pss_mib`: proportional set size of all its processes after
    the load of 32 clients. `failure`: why it was not measured, or not to the end.
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
    """One load against one target in one round. A fault says why its figures do not count.

    `cpu` is where the machine's cores were meanwhile, as shares of all of them: server, client,
    others.
    """

    target: str
    load: str
    round: int
    figures: dict[str, float] = {}
    cpu: dict[str, float] = {}
    fault: str | None = None


class Results(msgspec.Struct):
    """A run. A target is the name of a server, with `/grpc` or `/engine` for a layer of ours."""

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
    """Several runs as one: later ones replace servers and add loads; rounds are counted on."""
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
