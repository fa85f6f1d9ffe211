"""Runs processes together: if one ends, the others are stopped."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress

import typer

EXIT_KILLED = 128 + signal.SIGINT


class Stop:
    """The shutdown state. The first signal requests an orderly stop, the second an abrupt one."""

    def __init__(self) -> None:
        self.is_requested = asyncio.Event()
        self.is_immediate = asyncio.Event()

    def on_signal(self) -> None:
        (self.is_immediate if self.is_requested.is_set() else self.is_requested).set()


async def supervise(
    commands: Mapping[str, Sequence[str]],
    announce: Callable[[], Coroutine[None, None, None]],
) -> int:
    """Run commands until a signal or until one of them ends. Return the exit code.

    The last one is stopped first, so that no requests arrive at a stopping service. The exit code
    is 0 after an orderly stop and EXIT_KILLED after a second signal. Otherwise it is the exit code
    of the process that ended.

    Args:
        commands: The commands by the names of their processes, in the order of their start.
        announce: Run after all commands have started. It is cancelled if one of them ends first.
    """
    stop = Stop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.on_signal)
    children: dict[str, Process] = {}

    def stop_or_exit() -> list[Coroutine[None, None, object]]:
        return [stop.is_requested.wait(), *(child.wait() for child in children.values())]

    try:
        for name, command in commands.items():
            children[name] = await _start(command)
        await _first(announce(), *stop_or_exit())
        await _first(*stop_or_exit())
        code = 0 if stop.is_requested.is_set() else _death(children)
        if code == 0:
            typer.echo("stopping; press Ctrl-C again to abort running requests", err=True)
    finally:
        stop.is_requested.set()  # from here on, a signal requests an immediate stop
        for child in reversed(children.values()):
            await _end(child, stop.is_immediate)
    return code or (EXIT_KILLED if stop.is_immediate.is_set() else 0)


async def _start(command: Sequence[str]) -> Process:
    """Start a command in its own session, so that Ctrl-C in the terminal does not signal it."""
    leash = (sys.executable, "-m", "chatrpc_process.leash", str(os.getpid()))
    return await asyncio.create_subprocess_exec(
        *leash, *command, stdin=DEVNULL, start_new_session=True
    )


async def _end(child: Process, is_immediate: asyncio.Event) -> None:
    """Terminate the child and wait for it. Kill it and its children once `is_immediate` is set."""
    with suppress(ProcessLookupError):
        child.terminate()
    await _first(child.wait(), is_immediate.wait())
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _death(children: dict[str, Process]) -> int:
    """Report which child ended. Return its exit code in a shell's form, or 1 instead of 0."""
    name, code = next(
        (name, child.returncode) for name, child in children.items() if child.returncode is not None
    )
    if code < 0:
        typer.echo(f"error: the {name} was terminated by {signal.Signals(-code).name}", err=True)
        return 128 - code
    typer.echo(f"error: the {name} ended with exit code {code}", err=True)
    return code or 1


async def _first(*waits: Coroutine[None, None, object]) -> None:
    """Wait until one of `waits` ends, and cancel the others. Raise its error, if any."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
