"""Two processes that live and end together: the service and the gateway in front of it."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

import typer

EXIT_KILLED = 128 + signal.SIGINT


class Stop:
    """What the signals ask for: the first an orderly end, the next an end at once."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.insisted = asyncio.Event()

    def on_signal(self) -> None:
        (self.insisted if self.asked.is_set() else self.asked).set()


async def supervise(
    service: Sequence[str],
    gateway: Sequence[str],
    announce: Callable[[], Coroutine[None, None, None]],
) -> int:
    """Run both commands until a signal comes or one of them dies; returns the exit code.

    `announce` runs beside them once they are started, and is cancelled if they end before it does.
    The gateway ends first, so that nothing arrives at a service that is going. The code is 0 after
    an orderly end, EXIT_KILLED after a second signal, otherwise that of the process that died.
    """
    stop = Stop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.on_signal)
    children: dict[str, Process] = {}

    def over() -> list[Coroutine[None, None, object]]:
        return [stop.asked.wait(), *(child.wait() for child in children.values())]

    try:
        children["service"] = await _start(service)
        children["gateway"] = await _start(gateway)
        await _first(announce(), *over())
        await _first(*over())
        code = 0 if stop.asked.is_set() else _death(children)
        if code == 0:
            typer.echo("stopping; Ctrl-C again to end running requests at once", err=True)
    finally:
        stop.asked.set()  # from here on a signal insists
        for child in reversed(children.values()):
            await _end(child, stop.insisted)
    return code or (EXIT_KILLED if stop.insisted.is_set() else 0)


async def _start(command: Sequence[str]) -> Process:
    """Start a command in a session of its own: the terminal's Ctrl-C reaches this process alone."""
    leash = (sys.executable, "-m", "chatrpc_cli.leash", str(os.getpid()))
    return await asyncio.create_subprocess_exec(
        *leash, *command, stdin=DEVNULL, start_new_session=True
    )


async def _end(child: Process, insisted: asyncio.Event) -> None:
    """Ask the child to end and wait for it; kill it and its children once `insisted` is set."""
    with suppress(ProcessLookupError):
        child.terminate()
    await _first(child.wait(), insisted.wait())
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _death(children: dict[str, Process]) -> int:
    """Say which child died; returns its exit code, never 0, as a shell would give it."""
    name, code = next(
        (name, child.returncode) for name, child in children.items() if child.returncode is not None
    )
    if code < 0:
        typer.echo(f"error: the {name} was ended by {signal.Signals(-code).name}", err=True)
        return 128 - code
    typer.echo(f"error: the {name} ended with exit code {code}", err=True)
    return code or 1


async def _first(*waits: Coroutine[None, None, object]) -> None:
    """Wait for the first of these, cancel the others; raises what that one raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
