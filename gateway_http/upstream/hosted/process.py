"""The service process of a hosted model."""

import ast
import asyncio
import json
import os
import re
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from chatrpc_process.logs.configuration import LogFormat, LogLevel
from gateway_http.upstream.hosted.memory import resident_bytes
from gateway_http.upstream.registry import HostedModel

# The last lines on stderr, which may contain the reason of an exit.
_MAX_LINES = 50
_MAX_LINE_BYTES = 1 << 20
_MAX_REASON_CHARS = 500
# The time in seconds for the last lines on stderr after the process has ended. Its descendants may
# keep stderr open for longer.
_LAST_LINES_S = 1.0
# Running requests have ended before a model is unloaded, so there is nothing to drain.
_DRAIN_TIMEOUT_S = 5
# The text of a log line, as `chatrpc_process.logs` writes it.
_REASON = re.compile(r"\bstart_failed\b.*?\breason=(.*)$")


class ModelProcess(Protocol):
    """A running service process of one model."""

    @property
    def target(self) -> str:
        """The address, `host:port`, that the service listens on, or will listen on."""
        ...

    def memory_bytes(self) -> int:
        """Return its resident memory; 0 if it is unknown."""
        ...

    async def wait(self) -> str:
        """Wait until the process has ended. Return the reason as a sentence for clients."""
        ...

    def terminate(self) -> None:
        """Ask the process to end. Does nothing if it has ended."""
        ...

    def kill(self) -> None:
        """End the process and its descendants at once. Does nothing if it has ended."""
        ...


Launch = Callable[[HostedModel], Coroutine[None, None, ModelProcess]]
"""Starts the process of a model. Raises OSError if it cannot be started."""


@dataclass(frozen=True, slots=True)
class ServiceLauncher:
    """Starts services. It is a `Launch`.

    Attributes:
        log_level, log_format: The options of these names.
        api_keys: The file of API keys; None if the services need none.
    """

    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    api_keys: Path | None = None

    async def __call__(self, model: HostedModel) -> "ServiceProcess":
        """Start the service of a model. It ends when this process ends for any reason.

        Raises:
            OSError: It cannot be started, or another process listens on its port. That one would
                get its requests until the service reports the conflict.
        """
        port = _free_port(model.port or 0)
        leash = (sys.executable, "-m", "chatrpc_process.leash", str(os.getpid()))
        process = await asyncio.create_subprocess_exec(
            *leash,
            *self._command(model, port),
            stdin=DEVNULL,
            stderr=PIPE,
            limit=_MAX_LINE_BYTES,
            start_new_session=True,  # Ctrl-C in a terminal signals only this process
        )
        return ServiceProcess(process, f"127.0.0.1:{port}")

    def _command(self, model: HostedModel, port: int) -> list[str]:
        aliases = ["--model-aliases", json.dumps(model.aliases)] if model.aliases else []
        keys = [] if self.api_keys is None else ["--api-keys", str(self.api_keys)]
        return [
            *(sys.executable, "-m", "service", *model.arguments),
            *("--model", model.model, "--served-model-name", model.name, *aliases),
            *("--host", "127.0.0.1", "--port", str(port), *keys),
            *("--log-level", self.log_level, "--log-format", self.log_format),
            *("--drain-timeout-s", str(_DRAIN_TIMEOUT_S)),
        ]


class ServiceProcess:
    """`ModelProcess` of a service. Its stderr is copied to that of this process."""

    def __init__(self, process: Process, target: str) -> None:
        self.target = target
        self._process = process
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        stderr = process.stderr
        if stderr is None:
            raise ValueError("the process has no pipe as stderr")
        self._reading = asyncio.ensure_future(self._copy(stderr))

    def memory_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    async def wait(self) -> str:
        code = await self._process.wait()
        await asyncio.wait({self._reading}, timeout=_LAST_LINES_S)
        self._reading.cancel()
        return exit_reason(code, self._lines)

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _copy(self, stderr: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stderr.readline()
            except ValueError:  # the line is longer than the limit, and is dropped
                continue
            if not line:
                return
            text = line.decode(errors="replace")
            self._lines.append(text.rstrip())
            sys.stderr.write(text)


def exit_reason(code: int, lines: Sequence[str]) -> str:
    """Return why a service has ended, as a sentence.

    Args:
        code: The exit code; negative for a signal.
        lines: The last lines on its stderr.
    """
    if code < 0:
        return f"The process was terminated by {signal.Signals(-code).name}."
    for line in reversed(lines):
        if reason := _reported_reason(line):
            return reason[:_MAX_REASON_CHARS]
    return f"The process ended with exit code {code}."


def _reported_reason(line: str) -> str:
    """Return the reason of a failed start that a line contains; "" if it contains none."""
    if line.startswith("error: "):
        return line.removeprefix("error: ")
    if line.startswith("{"):
        with suppress(ValueError, RecursionError):
            fields = json.loads(line)
            return str(fields["reason"]) if fields.get("event") == "start_failed" else ""
        return ""
    found = _REASON.search(line)
    if found is None:
        return ""
    with suppress(ValueError, SyntaxError):
        return str(ast.literal_eval(found[1]))
    return found[1]


def _free_port(port: int) -> int:
    """Return `port` if no process listens on it, and any free port for 0. Else raise OSError."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        return int(listener.getsockname()[1])
