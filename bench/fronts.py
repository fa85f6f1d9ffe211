"""The fronts of one engine: vLLM's own OpenAI server and ours, llama.cpp's server and ours."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from rich.console import RenderableType

from bench import ours, table
from bench.contest import Entry
from bench.loads import of_fronts
from bench.peers import llama_cpp, vllm
from bench.peers.environment import InstallError
from bench.results import Results
from bench.roster import checkpoint
from bench.server import Ports, Server
from bench.summary import Summary

# All clients of the largest load run at once.
_MAX_NUM_SEQS = 128
_LIMITS = ("--max-num-seqs", str(_MAX_NUM_SEQS), "--max-model-len", "8192")
_BF16 = "bfloat16"

Command = Callable[[Ports], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Front:
    """A front, with its engine.

    Attributes:
        install: Installs it, unless it is installed. Raises InstallError if that fails.
        server: Returns the server. The argument is the directory of the model in bf16.
    """

    install: Callable[[], None]
    server: Callable[[Path], Server]


def entries(names: Iterable[str], report: Callable[[str], None]) -> list[Entry]:
    """Install the fronts and return them. One that cannot be installed is reported and left out."""
    found = []
    for name in names:
        try:
            report(f"installing {name} if necessary")
            FRONTS[name].install()
            server = FRONTS[name].server(checkpoint("bf16"))
        except InstallError as error:
            report(f"{name} cannot be installed: {error}")
        else:
            loads = of_fronts()
            grpc_loads = list(loads) if server.has_grpc else []
            found.append(Entry(server, list(loads), grpc_loads))
    return found


def costs(found: Results) -> RenderableType:
    """Return a table of the start and the costs of each front.

    CPU seconds are those of all processes of the server for 1000 generated tokens.
    """
    summary = Summary(found)
    rows = {}
    for name, facts in found.servers.items():
        cells: list[float | None] = [facts.ready_s, facts.pss_mib]
        for load in found.loads:
            figure = summary.cpu_s_per_1000_tokens(name, load, found.machine.num_cores)
            cells.append(None if figure is None else figure.median)
        rows[name] = cells
    columns = ["start, s", "memory, MiB", *(f"CPU s, {title}" for title in found.loads.values())]
    return table.of_figures(columns, rows)


def _server(
    name: str, title: str, settings: str, commands: Sequence[Command], *, is_ours: bool = True
) -> Server:
    return Server(
        name=name,
        title=title,
        version=version("chatrpc") if is_ours else vllm.VERSION,
        settings=settings,
        model=vllm.MODEL,
        commands=lambda ports: [command(ports) for command in commands],
        env=vllm.environ(),
        has_grpc=is_ours,
    )


def _vllm(model: Path) -> Server:
    def serve(ports: Ports) -> Sequence[str]:
        return vllm.serve_command(model, ports.http, _MAX_NUM_SEQS)

    return _server("vllm", "vLLM's OpenAI server", " ".join(_LIMITS), [serve], is_ours=False)


def _chatrpc_vllm(model: Path) -> Server:
    def service(ports: Ports) -> Sequence[str]:
        python = str(vllm.ENVIRONMENT.python)
        options = ("--engine", "vllm", *_named(model), "--dtype", _BF16, *_LIMITS)
        return ours.service_command(ports, *options, python=python)

    commands = [service, ours.gateway_command]
    settings = f"service with `--engine vllm {' '.join(_LIMITS)}`, and gateway"
    return _server("chatrpc-vllm", "chatrpc, engine vllm", settings, commands)


def _openai_vllm(model: Path) -> Server:
    def serve(ports: Ports) -> Sequence[str]:
        return vllm.serve_command(model, ports.upstream, _MAX_NUM_SEQS)

    commands = [serve, _upstream_service, ours.gateway_command]
    settings = "service with `--engine openai` and gateway, before vLLM's OpenAI server"
    return _server("openai-vllm", "chatrpc, engine openai, vLLM", settings, commands)


def _openai_llama_cpp(_: Path) -> Server:
    def serve(ports: Ports) -> Sequence[str]:
        return llama_cpp.serve_command(ports.upstream)

    commands = [serve, _upstream_service, ours.gateway_command]
    return Server(
        name="openai-llama.cpp",
        title="chatrpc, engine openai, llama.cpp",
        version=version("chatrpc"),
        settings="service with `--engine openai` and gateway, before llama.cpp's server",
        model=llama_cpp.MODEL,
        commands=lambda ports: [command(ports) for command in commands],
        env=os.environ,
        has_grpc=True,
    )


def _upstream_service(ports: Ports) -> Sequence[str]:
    url = f"http://127.0.0.1:{ports.upstream}/v1"
    return ours.service_command(ports, "--engine", "openai", "--upstream-url", url)


def _named(model: Path) -> Sequence[str]:
    return "--model", str(model), "--served-model-name", vllm.MODEL


FRONTS = {
    "vllm": Front(vllm.install, _vllm),
    "chatrpc-vllm": Front(vllm.install_with_service, _chatrpc_vllm),
    "openai-vllm": Front(vllm.install, _openai_vllm),
    "llama.cpp": Front(llama_cpp.install, lambda _: llama_cpp.server()),
    "openai-llama.cpp": Front(llama_cpp.install, _openai_llama_cpp),
}
