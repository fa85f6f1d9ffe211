"""The fronts of one engine: vLLM's own OpenAI server and ours, llama.cpp's server and ours."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

from rich.console import RenderableType

from bench import ours, table
from bench.contest import Entry
from bench.loads import of_fronts
from bench.model import Model
from bench.peers import llama_cpp, vllm
from bench.peers.environment import InstallError
from bench.results import Results
from bench.server import Ports, Server
from bench.summary import Summary

# All clients of the largest load run at once.
_MAX_NUM_SEQS = 128
_LIMITS = ("--max-num-seqs", str(_MAX_NUM_SEQS), "--max-model-len", "8192")
_BF16 = "bfloat16"
_GGUF = "Q4_0"

Command = Callable[[Ports], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Front:
    """A front, with its engine.

    Attributes:
        install: Installs it, unless it is installed. Raises InstallError if that fails.
        server: Returns the server of a model.
    """

    install: Callable[[], None]
    server: Callable[[Model], Server]


def entries(names: Iterable[str], model: Model, report: Callable[[str], None]) -> list[Entry]:
    """Install the fronts and return them. One that cannot be installed is reported and left out."""
    found = []
    for name in names:
        try:
            report(f"installing {name} if necessary")
            FRONTS[name].install()
            server = FRONTS[name].server(model)
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


def _ours(
    name: str,
    title: str,
    settings: str,
    model: Model,
    commands: Sequence[Command],
    env: Mapping[str, str],
) -> Server:
    return Server(
        name=name,
        title=title,
        version=version("chatrpc"),
        settings=settings,
        model=model.name,
        commands=lambda ports: [command(ports) for command in commands],
        env=env,
        has_grpc=True,
    )


# The files of the model are made before the commands, since these are made during the measured
# start.


def _vllm(model: Model) -> Server:
    checkpoint = model.source()

    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return [vllm.serve_command(checkpoint, model.name, ports.http, _MAX_NUM_SEQS)]

    return Server(
        name="vllm",
        title="vLLM's OpenAI server",
        version=vllm.VERSION,
        settings=" ".join(_LIMITS),
        model=model.name,
        commands=commands,
        env=vllm.environ(),
    )


def _chatrpc_vllm(model: Model) -> Server:
    checkpoint = model.source()

    def service(ports: Ports) -> Sequence[str]:
        python = str(vllm.ENVIRONMENT.python)
        named = ("--model", str(checkpoint), "--served-model-name", model.name)
        options = ("--engine", "vllm", *named, "--dtype", _BF16, *_LIMITS)
        return ours.service_command(ports, *options, python=python)

    commands = [service, ours.gateway_command]
    settings = f"service with `--engine vllm {' '.join(_LIMITS)}`, and gateway"
    env = vllm.environ()
    return _ours("chatrpc-vllm", "chatrpc, engine vllm", settings, model, commands, env)


def _openai_vllm(model: Model) -> Server:
    checkpoint = model.source()

    def serve(ports: Ports) -> Sequence[str]:
        return vllm.serve_command(checkpoint, model.name, ports.upstream, _MAX_NUM_SEQS)

    commands = [serve, _upstream_service, ours.gateway_command]
    settings = "service with `--engine openai` and gateway, before vLLM's OpenAI server"
    env = vllm.environ()
    return _ours("openai-vllm", "chatrpc, engine openai, vLLM", settings, model, commands, env)


def _llama_cpp(model: Model) -> Server:
    return llama_cpp.server(_GGUF, model.gguf(_GGUF), model.name)


def _openai_llama_cpp(model: Model) -> Server:
    file = model.gguf(_GGUF)

    def serve(ports: Ports) -> Sequence[str]:
        return llama_cpp.serve_command(file, model.name, ports.upstream)

    name, title = "openai-llama.cpp", "chatrpc, engine openai, llama.cpp"
    commands = [serve, _upstream_service, ours.gateway_command]
    settings = "service with `--engine openai` and gateway, before llama.cpp's server"
    return _ours(name, title, settings, model, commands, os.environ)


def _upstream_service(ports: Ports) -> Sequence[str]:
    url = f"http://127.0.0.1:{ports.upstream}/v1"
    return ours.service_command(ports, "--engine", "openai", "--upstream-url", url)


FRONTS = {
    "vllm": Front(vllm.install, _vllm),
    "chatrpc-vllm": Front(vllm.install_with_service, _chatrpc_vllm),
    "openai-vllm": Front(vllm.install, _openai_vllm),
    "llama.cpp": Front(llama_cpp.install, _llama_cpp),
    "openai-llama.cpp": Front(llama_cpp.install, _openai_llama_cpp),
}
