"""Measures the engine on a GPU, for a report that a person sends back.

Each model is measured in a process of its own (`bench.gpu_host`). Then the same loads are sent to
our service and gateway and, if it is installed, to vLLM.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.gpu_results import GpuReport, ModelFigures, ServedLoad, page
from bench.loads import Closed
from bench.progress import Progress
from bench.server import Ports, Server, StartError, start
from service.checkpoint import resolve
from service.config import ServiceSettings

_LOADS = {
    False: [
        Closed("c1", "1 client", 1, 8, 120, 64),
        Closed("c32", "32 clients", 32, 128, 120, 64),
        Closed("c256", "256 clients", 256, 768, 120, 64),
    ],
    True: [Closed("c2", "2 clients", 2, 4, 10, 4)],
}
_NAME = "measured"  # the name under which every server serves the model


async def run(
    models: Sequence[str],
    device: str,
    out: Path,
    progress: Progress,
    *,
    is_quick: bool,
    has_servers: bool,
) -> GpuReport:
    """Measure, and write `gpu.json` and `gpu.md` to `out` after each part.

    A part that fails is recorded, and the others are measured.

    Args:
        out: A directory with a folder `logs`, for the logs of servers.
    """
    report = GpuReport(time.strftime("%Y-%m-%d %H:%M", time.gmtime()), is_quick)
    for model in models:
        with progress.load(model, device, None):
            try:
                report.models.append(await _figures(model, device, is_quick=is_quick))
            except RuntimeError as error:
                report.failures[model] = str(error)
        _write(report, out)
    if has_servers:
        for server in _servers(models[-1], device):
            await _serve(server, report, out / "logs", progress, is_quick=is_quick)
            _write(report, out)
    return report


async def _figures(model: str, device: str, *, is_quick: bool) -> ModelFigures:
    """Return the figures of one model.

    Raises:
        RuntimeError: The process failed. The message is the last line of its output.
    """
    scale = "quick" if is_quick else "full"
    command = (sys.executable, "-m", "bench.gpu_host", model, device, scale)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        stdout, stderr = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
    return msgspec.json.decode(stdout, type=ModelFigures)


async def _serve(
    server: Server, report: GpuReport, logs: Path, progress: Progress, *, is_quick: bool
) -> None:
    """Send the loads to a server, and add their figures to the report."""
    try:
        running = await start(server, logs)
    except StartError as error:
        report.failures[server.title] = str(error)
        return
    try:
        async with running.awake():
            for seed, load in enumerate(_LOADS[is_quick]):
                with progress.load(load.title, server.title, load.num_requests):
                    client = running.clients["http"]
                    await load.warm_up.run(client, 1000 + seed, lambda: None)
                    outcome = await load.run(client, seed, progress.on_done)
                figures = dict(outcome.figures)
                report.served.append(ServedLoad(server.title, load.title, figures, outcome.fault))
    finally:
        await running.end()


def _servers(model: str, device: str) -> list[Server]:
    """Return our service and gateway, and vLLM if its command is in the PATH."""
    ours = _our_commands(model, device)
    found = [_server("chatrpc", version("chatrpc"), model, ours, has_grpc=True)]
    vllm = shutil.which("vllm")
    if vllm is not None and device == "cuda":
        checkpoint = str(resolve(model, ServiceSettings.load([]).cache_dir).path)

        def commands(ports: Ports) -> Sequence[Sequence[str]]:
            listen = ("--host", "127.0.0.1", "--port", str(ports.http))
            return [(vllm, "serve", checkpoint, "--served-model-name", _NAME, *listen)]

        found.append(_server("vLLM", "installed", model, commands, has_grpc=False))
    return found


def _our_commands(model: str, device: str) -> Callable[[Ports], Sequence[Sequence[str]]]:
    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        python = (sys.executable, "-m")
        log = ("--log-level", "warning")
        options = ("--model", model, "--served-model-name", _NAME, "--engine", "local")
        service = ("service", *options, "--device", device, "--port", str(ports.grpc), *log)
        upstream = f"127.0.0.1:{ports.grpc}"
        gateway = ("gateway_http", "--upstream", upstream, "--port", str(ports.http), *log)
        return (*python, *service), (*python, *gateway)

    return commands


def _server(
    title: str,
    installed: str,
    model: str,
    commands: Callable[[Ports], Sequence[Sequence[str]]],
    *,
    has_grpc: bool,
) -> Server:
    return Server(
        name=title.lower(),
        title=title,
        version=installed,
        settings=f"{model}, as it comes",
        model=_NAME,
        commands=commands,
        env=os.environ,
        has_grpc=has_grpc,
    )


def _write(report: GpuReport, out: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (out / "gpu.json").write_bytes(text + b"\n")
    (out / "gpu.md").write_text(page(report))
