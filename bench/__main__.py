"""The commands: loads against a server, runs with and without peers, the report."""

import asyncio
import signal
from collections.abc import Collection, Coroutine, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer
import uvloop
from rich.console import Console

from bench import (
    fronts,
    gpu,
    loads,
    machine,
    neighbour,
    ours,
    probes,
    report,
    results,
    server,
    table,
)
from bench.attacks import ATTACKS
from bench.budgets import budgets
from bench.client_grpc import GrpcClient
from bench.client_http import HttpClient
from bench.contest import Contest, Entry, Plan
from bench.knee import RateRun, Search
from bench.metrics import Outcome
from bench.model import Model, of_options
from bench.ours import VARIANTS
from bench.progress import Progress
from bench.request import Client
from bench.results import Bounds, Results
from bench.roster import COMMON, OPEN, OURS_ALONE, PEERS, our_entries, peer_entries
from bench.shapes import SHAPES
from bench.siege import siege
from bench.soak import Soak
from bench.soak import soak as run_soak
from bench.summary import Summary
from service.checkpoint import EMBEDDED_MODEL
from service.openmp import bound_spinning

app = typer.Typer(
    help="Measure chatrpc by itself or against other servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

T = TypeVar("T")

OUT = Path(".bench")
DOCS = Path("docs")

OUR_LOADS = ",".join((*COMMON, *OURS_ALONE, *OPEN))
SHARED_LOADS = ",".join((*COMMON, *OURS_ALONE))
FRONT_LOADS = ",".join(loads.of_fronts())
DEFAULT_VARIANTS = "chatrpc,chatrpc-int4,chatrpc-q4_0,chatrpc-plain"
DEFAULT_PEERS = "vllm-int8,vllm-int4,llama.cpp-q4_0,llama.cpp-q4_k_m"

Quick = Annotated[
    bool, typer.Option("--quick", help="Run one short round, only to check that everything works.")
]
Brief = Annotated[
    bool,
    typer.Option(
        "--brief",
        help="Send fewer and shorter requests, for models of a billion parameters and more. The "
        "layers are not measured.",
    ),
]
Rounds = Annotated[
    int, typer.Option(help="Number of rounds. Each load runs once in a round.", min=1)
]
Loads = Annotated[
    str, typer.Option("--loads", help="Names of the loads to run, separated by commas.")
]
Variants = Annotated[
    str,
    typer.Option(help=f"Variants of our service, separated by commas: {', '.join(VARIANTS)}."),
]
Peers = Annotated[
    str, typer.Option("--peers", help=f"Peers, separated by commas: {', '.join(PEERS)}.")
]
FirstStarts = Annotated[
    bool, typer.Option("--first-starts", help="Also start each server with empty caches.")
]
Shape = Annotated[
    str | None,
    typer.Option(help=f"Use a model with random weights of a shape: {', '.join(SHAPES)}."),
]
OwnVocabulary = Annotated[
    bool,
    typer.Option(
        "--own-vocabulary",
        help="Give the model of a shape its own vocabulary size, instead of the 49152 tokens of "
        "the embedded model.",
    ),
]
ModelPath = Annotated[
    Path | None,
    typer.Option("--model", help="Use the checkpoint in this directory. It is in bfloat16."),
]
Gguf = Annotated[
    Path | None,
    typer.Option(help="The GGUF file of --model, from which llama.cpp quantizes.", exists=True),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Continue the last run of this command, model and size: measure only what is "
        "missing. With a larger --rounds, further rounds are added.",
    ),
]
InTurn = Annotated[
    bool,
    typer.Option(
        "--in-turn",
        help="End each server after its loads of a round, so that it needs no memory while others "
        "are measured. Otherwise all servers are in memory during the whole run.",
    ),
]


@app.command()
def load(
    *,
    url: Annotated[
        str | None,
        typer.Option(help="Base URL of an OpenAI-compatible server: http://HOST:PORT/v1."),
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(help="gRPC address of a chatrpc service.", metavar="HOST:PORT")
    ] = None,
    model: Annotated[str, typer.Option(help="Id of the model.")] = EMBEDDED_MODEL,
    clients: Annotated[
        int, typer.Option(help="Closed loop: number of concurrent clients.", min=1)
    ] = 8,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, with Poisson arrivals.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Total number of requests.", min=1)] = 32,
    prompt_words: Annotated[
        int, typer.Option(help="Number of random words in a prompt.", min=1)
    ] = 120,
    tokens: Annotated[int, typer.Option(help="Number of tokens of each response.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the random prompts.")] = 0,
    prints_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
) -> None:
    """Send one load to a running server, over HTTP or over gRPC.

    Responses are greedy, streamed and of a fixed length. The exit code is 1 if any response
    differs.
    """
    if (url is None) == (grpc is None):
        raise typer.BadParameter("either --url or --grpc is required")
    wanted: loads.Load = (
        loads.Closed("load", f"{clients} clients", clients, requests, prompt_words, tokens)
        if rate is None
        else loads.Open("load", f"{rate:g}/s", rate, requests, prompt_words, tokens)
    )
    outcome = _run(_one_load(wanted, url, grpc, model, seed))
    if prints_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(outcome)).decode())
    else:
        table.show(table.of_outcome(outcome))
    raise typer.Exit(1 if outcome.fault else 0)


async def _one_load(
    wanted: loads.Load, url: str | None, grpc: str | None, model: str, seed: int
) -> Outcome:
    client: Client = HttpClient(url, model) if url else GrpcClient(grpc or "", model)
    try:
        with (
            Progress(Console(stderr=True)) as progress,
            progress.load(wanted.title, url or grpc or "", wanted.num_requests),
        ):
            return await wanted.run(client, seed, progress.on_done)
    finally:
        await client.close()


@app.command(name="probes")
def probes_command(
    *,
    url: Annotated[
        str | None, typer.Option(help="Base URL of a gateway: http://HOST:PORT.")
    ] = None,
    grpc: Annotated[
        str | None, typer.Option(help="gRPC address of a chatrpc service.", metavar="HOST:PORT")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of calls of each probe.", min=1)] = 200,
    interval: Annotated[float, typer.Option(help="Seconds between two calls.", min=0)] = 0.05,
) -> None:
    """Measure the probes of a running service or gateway while it is under load.

    The exit code is 1 if a probe failed.
    """
    wanted = {
        **(probes.service_probes(grpc) if grpc else {}),
        **(probes.gateway_probes(url.rstrip("/")) if url else {}),
    }
    if not wanted:
        raise typer.BadParameter("--url or --grpc is required")
    with (
        Progress(Console(stderr=True)) as progress,
        progress.load("probes", url or grpc or "", rounds),
    ):
        outcome = _run(probes.probe(wanted, rounds, interval, progress.on_done))
    table.show(table.of_outcome(outcome))
    raise typer.Exit(1 if outcome.fault else 0)


@app.command(name="neighbour")
def neighbour_command(
    *,
    rounds: Annotated[int, typer.Option(help="Number of measurements of each setting.", min=1)] = 3,
    tokens: Annotated[int, typer.Option(help="Number of tokens of the stream.", min=2)] = 64,
) -> None:
    """Measure one stream with and without another process that keeps a core busy."""
    rates = _run(neighbour.measure(neighbour.SETTINGS, rounds, tokens))
    typer.echo(neighbour.table(rates))


@app.command()
def run(
    *,
    rounds: Rounds = 5,
    wanted: Loads = OUR_LOADS,
    variants: Variants = DEFAULT_VARIANTS,
    shape: Shape = None,
    own_vocabulary: OwnVocabulary = False,
    model: ModelPath = None,
    gguf: Gguf = None,
    brief: Brief = False,
    quick: Quick = False,
    resume: Resume = False,
    in_turn: InTurn = False,
    first_starts: FirstStarts = False,
) -> None:
    """Measure our own service: its loads, layers and variants."""
    options = _RunOptions(
        "run", rounds, _names(wanted, loads.standard()), _size(brief=brief, quick=quick),
        has_first_starts=first_starts, is_resumed=resume, is_in_turn=in_turn,
    )  # fmt: skip
    chosen = _model(shape, model, gguf, own_vocabulary=own_vocabulary)
    with Progress(Console(stderr=True)) as progress:
        names = _names(variants, VARIANTS)
        entries = our_entries(names, chosen, options.loads, progress.print, has_layers=not brief)
        found = _contest(options, chosen, entries, progress)
    table.show(table.of_results(found))
    table.show(table.of_budgets(budgets(Summary(found))))


@app.command()
def peers(
    *,
    rounds: Rounds = 3,
    wanted: Loads = SHARED_LOADS,
    variants: Variants = DEFAULT_VARIANTS,
    names: Peers = DEFAULT_PEERS,
    shape: Shape = None,
    own_vocabulary: OwnVocabulary = False,
    model: ModelPath = None,
    gguf: Gguf = None,
    brief: Brief = False,
    quick: Quick = False,
    resume: Resume = False,
    in_turn: InTurn = False,
    first_starts: FirstStarts = False,
    install_only: Annotated[
        bool, typer.Option("--install-only", help="Install the peers without measuring.")
    ] = False,
    publish: Annotated[
        bool, typer.Option(help="Write docs/benchmarks.* at the end, but not with --quick.")
    ] = True,
) -> None:
    """Install the peers, measure them and our service in turn, and write the report."""
    options = _RunOptions(
        "peers", rounds, _names(wanted, loads.standard()), _size(brief=brief, quick=quick),
        has_first_starts=first_starts, is_resumed=resume, is_in_turn=in_turn,
    )  # fmt: skip
    wanted_variants, wanted_peers = _names(variants, VARIANTS), _names(names, PEERS)
    chosen = _model(shape, model, gguf, own_vocabulary=own_vocabulary)
    with Progress(Console(stderr=True)) as progress:
        entries = our_entries(
            wanted_variants, chosen, options.loads, progress.print, has_layers=not brief
        )
        entries += peer_entries(wanted_peers, chosen, options.loads, progress.print)
        if install_only:
            return
        found = _contest(options, chosen, entries, progress)
    table.show(table.of_results(found))
    if publish and not quick:
        report.publish(found, DOCS)


@app.command()
def rates(
    *,
    variants: Variants = "chatrpc,chatrpc-int4",
    names: Peers = "vllm-int8,llama.cpp-q4_0",
    shape: Shape = None,
    own_vocabulary: OwnVocabulary = False,
    model: ModelPath = None,
    gguf: Gguf = None,
    max_ttft_ms: Annotated[
        float, typer.Option(help="Bound of the 99th percentile of the time to first token.", min=1)
    ] = 2000.0,
    max_tpot_ms: Annotated[
        float, typer.Option(help="Bound of the median time per output token.", min=1)
    ] = 200.0,
    first_rate: Annotated[
        float, typer.Option(help="Requests per second that are tried first.", min=0.001)
    ] = 1.0,
    seconds: Annotated[
        float, typer.Option(help="Seconds in which requests arrive, for each rate.", min=1)
    ] = 30.0,
    refinements: Annotated[
        int, typer.Option(help="Number of rates between the last good and the first bad one.")
    ] = 2,
) -> None:
    """Find the knee of each server: the highest rate of requests that it serves within bounds.

    Requests arrive in an open loop, as a Poisson process. Servers run one after another.
    """
    chosen = _model(shape, model, gguf, own_vocabulary=own_vocabulary)
    search = Search(Bounds(max_ttft_ms, max_tpot_ms), first_rate, seconds, refinements)
    wanted_variants, wanted_peers = _names(variants, VARIANTS), _names(names, PEERS)
    with Progress(Console(stderr=True)) as progress:
        entries = our_entries(wanted_variants, chosen, (), progress.print)
        entries += peer_entries(wanted_peers, chosen, (), progress.print)
        found = Results(started=results.now(), machine=machine.facts(), model=chosen.facts)
        file = OUT / f"rates-{chosen.name}.json"
        work = RateRun(found, search, _logs(), progress)
        servers = [entry.server for entry in entries]
        _run(work.run(servers, lambda found: results.write(found, file)))
    table.show(table.of_results(found))
    table.show(table.of_knees(found))


@app.command(name="fronts")
def fronts_command(
    *,
    rounds: Rounds = 3,
    wanted: Loads = FRONT_LOADS,
    names: Annotated[
        str, typer.Option("--fronts", help="Names of the fronts to measure, separated by commas.")
    ] = ",".join(fronts.FRONTS),
    quick: Quick = False,
    first_starts: FirstStarts = False,
) -> None:
    """Measure servers and our fronts of the same engines in turn."""
    chosen = _names(wanted, loads.of_fronts())
    options = _RunOptions(
        "fronts", rounds, chosen, _size(brief=False, quick=quick), has_first_starts=first_starts
    )
    model = Model.embedded()
    with Progress(Console(stderr=True)) as progress:
        entries = fronts.entries(_names(names, fronts.FRONTS), model, progress.print)
        table_of_loads = loads.of_fronts(is_quick=quick)
        found = _contest(options, model, entries, progress, table_of_loads)
    table.show(table.of_results(found))
    table.show(fronts.costs(found))


@app.command()
def soak(
    *,
    clients: Annotated[int, typer.Option(help="Number of concurrent streams.", min=1)] = 256,
    minutes: Annotated[
        float, typer.Option(help="Minutes to measure, after the warm-up.", min=0)
    ] = 10.0,
    warm_up_minutes: Annotated[
        float, typer.Option(help="Minutes of warm-up, in which the cache fills.", min=0)
    ] = 4.0,
) -> None:
    """Run our service and gateway under many clients for a long time.

    The exit code is 1 if a request failed or the memory of a process grew by more than 5 %.
    """

    async def soaked(progress: Progress) -> Soak:
        running = await server.start(ours.server("chatrpc", Model.embedded()), _logs())
        try:
            async with running.awake():
                with progress.load(f"{clients} clients", "chatrpc", None):
                    return await run_soak(
                        running.clients["http"],
                        running.group,
                        num_clients=clients,
                        warm_up_s=60 * warm_up_minutes,
                        duration_s=60 * minutes,
                        on_done=progress.on_done,
                    )
        finally:
            await running.end()

    with Progress(Console(stderr=True)) as progress:
        found = _run(soaked(progress))
    (OUT / "soak.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    table.show(table.of_outcome(found.outcome))
    raise typer.Exit(1 if found.outcome.fault else 0)


@app.command(name="siege")
def siege_command(
    *,
    names: Annotated[
        str, typer.Option("--attacks", help="Names of the attacks to run, separated by commas.")
    ] = ",".join(ATTACKS),
    seconds: Annotated[float, typer.Option(help="Seconds to measure each attack.", min=0)] = 10.0,
) -> None:
    """Measure how one caller is served while another one attacks.

    The exit code is 1 if a time to first token or a probe took longer than allowed.
    """
    with Progress(Console(stderr=True)) as progress:
        found = _run(siege(_names(names, ATTACKS), seconds, _logs(), progress))
    (OUT / "siege.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    table.show(table.of_siege(found))
    raise typer.Exit(1 if any(map(found.fault, found.attacked)) else 0)


@app.command(name="gpu")
def gpu_command(
    *,
    models: Annotated[
        list[str],
        typer.Option("--model", help="Model to measure, as for the service. May be repeated."),
    ] = [EMBEDDED_MODEL],  # noqa: B006  # typer copies it
    device: Annotated[str, typer.Option(help="`cuda`, or `cpu` to try the command.")] = "cuda",
    quick: Quick = False,
    servers: Annotated[
        bool, typer.Option(help="Also measure our service, and vLLM if it is installed.")
    ] = True,
    out: Annotated[Path, typer.Option(help="Directory of gpu.json and gpu.md.")] = OUT,
) -> None:
    """Measure the engine on a GPU, and write one report to send back.

    The exit code is 1 if a part failed. The report has the others.
    """
    if device not in {"cpu", "cuda"}:
        raise typer.BadParameter(f"unknown device {device}: cuda or cpu")
    (out / "logs").mkdir(parents=True, exist_ok=True)
    with Progress(Console(stderr=True)) as progress:
        found = _run(gpu.run(models, device, out, progress, is_quick=quick, has_servers=servers))
    typer.echo((out / "gpu.md").read_text())
    raise typer.Exit(1 if found.failures else 0)


@app.command(name="context")
def context_command(
    shape: Shape = None,
    model: ModelPath = None,
    lengths: Annotated[
        str, typer.Option(help="Numbers of tokens of context, separated by commas.")
    ] = "150,2000,8000,32000",
    sequences: Annotated[
        str, typer.Option(help="Numbers of sequences, separated by commas.")
    ] = "1,8",
    steps: Annotated[int, typer.Option(help="Number of steps of each row.", min=1)] = 9,
    out: Annotated[
        Path | None, typer.Option(help="Also write the table to this file.", dir_okay=False)
    ] = None,
) -> None:
    """Measure decoding on a CPU as contexts grow, with a KV cache of bfloat16 and of int8.

    The cache of the longest contexts has to fit into the memory.
    """
    # Imported here, because it imports torch, which takes seconds.
    from bench.context import measure, page  # noqa: PLC0415

    chosen = _model(shape, model, None, own_vocabulary=False)
    counts = _counts(lengths), _counts(sequences)
    with Progress(Console(stderr=True)) as progress:
        rows = measure(chosen.source(), *counts, steps, progress.print)
    text = page(chosen.title, rows)
    if out is not None:
        out.write_text(text)
    typer.echo(text)


@app.command(name="embeddings")
def embeddings_command(
    model: Annotated[Path, typer.Argument(help="Directory of an embedding model.", exists=True)],
    *,
    texts: Annotated[int, typer.Option(help="Number of texts that are sent at once.", min=1)] = 256,
    rounds: Annotated[int, typer.Option(help="Number of measurements of each.", min=1)] = 5,
) -> None:
    """Compare the throughput of embeddings with sentence_transformers, on this CPU."""
    bound_spinning()
    # Imported here, because it imports torch, which takes seconds.
    from bench.embeddings import measure  # noqa: PLC0415

    for name, rate in _run(measure(model, texts, rounds)).items():
        typer.echo(f"{rate:8.1f} texts/s  {name}")


@app.command(name="report")
def report_command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Results of one run, or of several runs of a model to merge.", exists=True
        ),
    ] = None,
) -> None:
    """Write docs/benchmarks.md from the published results, or publish the given ones."""
    if files:
        report.publish(results.merged([results.read(file) for file in files]), DOCS)
    else:
        report.render(DOCS)


class _RunOptions(msgspec.Struct, frozen=True):
    """The options of a run."""

    name: str
    rounds: int
    loads: list[str]
    size: str
    has_first_starts: bool = False
    is_resumed: bool = False
    is_in_turn: bool = False


def _contest(
    options: _RunOptions,
    model: Model,
    entries: list[Entry],
    progress: Progress,
    table_of_loads: Mapping[str, loads.Load] | None = None,
) -> Results:
    """Run the loads of the options. They are of the standard table, unless another one is given."""
    if table_of_loads is None:
        table_of_loads = loads.standard(options.size)
    entries = [entry.only(options.loads) for entry in entries]
    suffix = "" if options.size == "full" else f"-{options.size}"
    file = OUT / f"{options.name}-{model.name}{suffix}.json"
    earlier = results.read(file) if options.is_resumed and file.exists() else None
    limits = earlier.machine.limits if earlier else None
    if limits is None and options.size != "quick":
        progress.print("measuring the limits of the machine")
        limits = machine.limits()
    plan = Plan(
        entries=[entry for entry in entries if entry.targets],
        loads={name: table_of_loads[name] for name in options.loads},
        num_rounds=1 if options.size == "quick" else options.rounds,
        logs=_logs(),
        save=lambda found: results.write(found, file),
        machine=msgspec.structs.replace(machine.facts(), limits=limits),
        model=model.facts,
        size=options.size,
        earlier=earlier,
        is_in_turn=options.is_in_turn,
        has_first_starts=options.has_first_starts,
    )
    return _run(Contest(plan, progress).run())


def _model(
    shape: str | None, path: Path | None, gguf: Path | None, *, own_vocabulary: bool
) -> Model:
    """Return the model that the options of a command name.

    Raises:
        typer.BadParameter: They contradict each other, or there is no such model.
    """
    try:
        return of_options(shape, path, gguf, has_own_vocabulary=own_vocabulary)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _size(*, brief: bool, quick: bool) -> str:
    return "quick" if quick else "brief" if brief else "full"


def _logs() -> Path:
    """Return the directory of the servers' logs, which is created."""
    logs = OUT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs


def _counts(text: str) -> list[int]:
    """Return the positive numbers in a comma-separated list.

    Raises:
        typer.BadParameter: An element is none.
    """
    counts = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split(",")]
    if not all(counts):
        raise typer.BadParameter(f"{text} is not a list of positive numbers")
    return counts


def _names(text: str, known: Collection[str]) -> list[str]:
    """Return the names in a comma-separated list, which may be empty.

    Raises:
        typer.BadParameter: A name is unknown.
    """
    names = [name for name in text.split(",") if name]
    if unknown := set(names) - set(known):
        raise typer.BadParameter(
            f"unknown: {', '.join(sorted(unknown))}; valid names: {', '.join(known)}"
        )
    return names


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` and return its result. SIGTERM and Ctrl-C end every started process."""

    async def main() -> T:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGTERM, task.cancel, "terminated by SIGTERM"
        )
        try:
            return await task
        except asyncio.CancelledError as error:
            typer.echo(error or "interrupted", err=True)
            raise typer.Abort from None

    return uvloop.run(main())


if __name__ == "__main__":
    app(prog_name="python -m bench")
