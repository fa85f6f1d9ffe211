"""The processes of one server: started together, frozen between loads, and always ended."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

import chatrpc_process.leash

_LEASH = Path(chatrpc_process.leash.__file__)
_GRACE_S = 15


class ProcessGroup:
    """A group of commands and all processes that they start. Each command has its own session.

    Their output goes to `log`. They end with this process in any case: see `chatrpc_process.leash`.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._leaders: list[asyncio.subprocess.Process] = []
        self._names: list[str] = []

    @classmethod
    async def start(
        cls, commands: Sequence[Sequence[str]], env: Mapping[str, str], log: Path
    ) -> Self:
        group = cls(log)
        try:
            for command in commands:
                await group.add(command, env)
        except BaseException:
            await group.end()
            raise
        return group

    async def add(
        self, command: Sequence[str], env: Mapping[str, str], *, stdin: int | None = None
    ) -> asyncio.subprocess.Process:
        """Start one more command. If `stdin` is PIPE, its stdout is a pipe too, not the log."""
        with self._log.open("ab") as log:
            leader = await asyncio.create_subprocess_exec(
                *(sys.executable, str(_LEASH), str(os.getpid()), *command),
                stdin=stdin or asyncio.subprocess.DEVNULL,
                stdout=stdin or log,
                stderr=log,
                env=dict(env),
                start_new_session=True,
                limit=1 << 24,
            )
        self._leaders.append(leader)
        self._names.append(_name(command))
        return leader

    @property
    def death(self) -> str | None:
        """Return how one of the commands ended by itself, with the last line of its output."""
        for leader in self._leaders:
            if leader.returncode is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                return f"exit code {leader.returncode}: {lines[-1] if lines else 'no output'}"
        return None

    def freeze(self) -> None:
        """Suspend the processes, since an idle server may use CPU time that another one needs."""
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def pss_bytes(self) -> int:
        """Return the proportional set size of all processes. Shared pages count in part."""
        return sum(_pss(process) for process in self.tree())

    def pss_by_command(self) -> dict[str, int]:
        """Return the proportional set size of each command with its children, by its name."""
        return {
            name: sum(map(_pss, _family(leader)))
            for name, leader in zip(self._names, self._leaders, strict=True)
        }

    def cpu_s(self) -> float:
        """Return the CPU time of all processes so far."""
        return sum(_cpu(process) for process in self.tree())

    async def end(self, grace_s: float = _GRACE_S) -> None:
        """Terminate all processes. Kill those that still run after `grace_s` seconds."""
        survivors = self.tree()
        self.thaw()
        self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await asyncio.gather(*(leader.wait() for leader in self._leaders))
        self._signal(signal.SIGKILL)
        for process in survivors:
            with suppress(psutil.NoSuchProcess):
                process.kill()  # psutil checks that the pid still belongs to the same process
        for leader in self._leaders:
            await leader.wait()

    def tree(self) -> list[psutil.Process]:
        return [process for leader in self._leaders for process in _family(leader)]

    def _signal(self, signum: signal.Signals) -> None:
        for leader in self._leaders:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(leader.pid, signum)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def idle_cpu(group: ProcessGroup, seconds: float = 2.0) -> float:
    """Return the share of one core that the processes use without requests."""
    before_s, start_s = group.cpu_s(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (group.cpu_s() - before_s) / (time.perf_counter() - start_s)


def _name(command: Sequence[str]) -> str:
    """Return the name of the module or program that a command line runs."""
    _, *arguments = command
    return arguments[1] if arguments[:1] == ["-m"] else Path(command[0]).name


def _family(leader: asyncio.subprocess.Process) -> list[psutil.Process]:
    """Return a process and everything that it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(leader.pid)
        return [process, *process.children(recursive=True)]
    return []


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
