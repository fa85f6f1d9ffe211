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

from bench import fronts, gpu, loads, neighbour, ours, probes, report, results, server, table
from bench.attacks import ATTACKS
from bench.budgets import budgets
from bench.client_grpc import GrpcClient
from bench.client_http import HttpClient
from bench.contest import Contest, Entry, Plan
from bench.metrics import Outcome
from bench.ours import VARIANTS
from bench.progress import Progress
from bench.request import Client
from bench.results import Results
from bench.roster import COMMON, OURS_ALONE, PEERS, our_entries, peer_entries
from bench.siege import siege
from bench.soak import Soak
from bench.soak import soak as run_soak
from bench.summary import Summary

app = typer.Typer(
    help="Measure chatrpc by itself or against other servers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

T = TypeVar("T")

OUT = Path(".bench")
DOCS = Path("docs")

ALL_LOADS = ",".join(loads.standard())
SHARED_LOADS = ",".join((*COMMON, *OURS_ALONE))
FRONT_LOADS = ",".join(loads.of_fronts())
ALL_VARIANTS = ",".join(VARIANTS)

Quick = Annotated[
    bool, typer.Option("--quick", help="Run one short round, only to check that everything works.")
]
Rounds = Annotated[
    int, typer.Option(help="Number of rounds. Each load runs once in a round.", min=1)
]
Loads = Annotated[
    str, typer.Option("--loads", help="Names of the loads to run, separated by commas.")
]
Variants = Annotated[str, typer.Option(help="Variants of our service to run, separated by commas.")]
FirstStarts = Annotated[
    bool, typer.Option("--first-starts", help="Also start each server with empty caches.")
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
    model: Annotated[str, typer.Option(help="Id of the model.")] = "smollm2-135m-instruct",
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
    wanted: Loads = ALL_LOADS,
    variants: Variants = ALL_VARIANTS,
    quick: Quick = False,
    first_starts: FirstStarts = False,
) -> None:
    """Measure our own service: all loads, layers and variants."""
    plan = _RunOptions("run", rounds, _names(wanted, loads.standard()), quick, first_starts)
    with Progress(Console(stderr=True)) as progress:
        found = _contest(plan, our_entries(_names(variants, VARIANTS)), progress)
    table.show(table.of_results(found))
    table.show(table.of_budgets(budgets(Summary(found))))


@app.command()
def peers(
    *,
    rounds: Rounds = 3,
    wanted: Loads = SHARED_LOADS,
    variants: Variants = ALL_VARIANTS,
    names: Annotated[
        str, typer.Option("--peers", help="Names of the peers to measure, separated by commas.")
    ] = ",".join(PEERS),
    quick: Quick = False,
    first_starts: FirstStarts = False,
    install_only: Annotated[
        bool, typer.Option("--install-only", help="Install the peers without measuring.")
    ] = False,
    publish: Annotated[
        bool, typer.Option(help="Write docs/benchmarks.* at the end, but not with --quick.")
    ] = True,
) -> None:
    """Install the peers, measure them and our service in turn, and write the report."""
    plan = _RunOptions("peers", rounds, _names(wanted, loads.standard()), quick, first_starts)
    entries = our_entries(_names(variants, VARIANTS))
    wanted_peers = _names(names, PEERS)
    with Progress(Console(stderr=True)) as progress:
        entries += peer_entries(wanted_peers, progress.print)
        if install_only:
            return
        found = _contest(plan, entries, progress)
    table.show(table.of_results(found))
    if publish and not quick:
        report.publish(found, DOCS)


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
    plan = _RunOptions("fronts", rounds, chosen, quick, first_starts)
    with Progress(Console(stderr=True)) as progress:
        entries = fronts.entries(_names(names, fronts.FRONTS), progress.print)
        found = _contest(plan, entries, progress, loads.of_fronts(is_quick=quick))
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
    logs = OUT / "logs"
    logs.mkdir(parents=True, exist_ok=True)

    async def soaked(progress: Progress) -> Soak:
        running = await server.start(ours.server("chatrpc"), logs)
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
    logs = OUT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with Progress(Console(stderr=True)) as progress:
        found = _run(siege(_names(names, ATTACKS), seconds, logs, progress))
    (OUT / "siege.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))
    table.show(table.of_siege(found))
    raise typer.Exit(1 if any(map(found.fault, found.attacked)) else 0)


@app.command(name="gpu")
def gpu_command(
    *,
    models: Annotated[
        list[str],
        typer.Option("--model", help="Model to measure, as for the service. May be repeated."),
    ] = [ours.MODEL],  # noqa: B006  # typer copies it
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


@app.command(name="report")
def report_command(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Results of one run, or of several runs to merge.", exists=True),
    ] = None,
) -> None:
    """Write docs/benchmarks.md from the published results, or publish the given ones."""
    if files:
        report.publish(results.merged([results.read(file) for file in files]), DOCS)
    else:
        report.render(results.read(DOCS / "benchmarks.json"), DOCS)


class _RunOptions(msgspec.Struct, frozen=True):
    """The options of a run."""

    name: str
    rounds: int
    loads: list[str]
    is_quick: bool
    has_first_starts: bool


def _contest(
    options: _RunOptions,
    entries: list[Entry],
    progress: Progress,
    table_of_loads: Mapping[str, loads.Load] | None = None,
) -> Results:
    """Run the loads of the options. They are of the standard table, unless another one is given."""
    if table_of_loads is None:
        table_of_loads = loads.standard(is_quick=options.is_quick)
    entries = [entry.only(options.loads) for entry in entries]
    logs = OUT / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    stem = options.name + ("-quick" if options.is_quick else "")
    plan = Plan(
        entries=[entry for entry in entries if not entry.is_idle],
        loads={name: table_of_loads[name] for name in options.loads},
        num_rounds=1 if options.is_quick else options.rounds,
        logs=logs,
        save=lambda found: results.write(found, OUT / f"{stem}.json"),
        has_first_starts=options.has_first_starts,
        is_quick=options.is_quick,
    )
    return _run(Contest(plan, progress).run())


def _names(text: str, known: Collection[str]) -> list[str]:
    """Return the names in a comma-separated list.

    Raises:
        typer.BadParameter: A name is unknown.
    """
    names = text.split(",")
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
