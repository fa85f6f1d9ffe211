"""`make serve` as a process, on free ports, with the embedded model."""

import os
import queue
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.wait import FAILSAFE_S

ROOT = Path(__file__).parent.parent.parent


MODEL = "smollm2-135m-instruct"


@dataclass
class Served:
    """A running `make serve`: its ports, and the banner that it printed when it was ready."""

    process: "subprocess.Popen[str]"
    http_port: int
    grpc_port: int
    banner: list[str]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}/v1"

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_stack(log: Path) -> Served:
    """Run `make serve` until its banner is complete."""
    http_port, grpc_port = free_port(), free_port()
    with log.open("w") as stderr:
        process = subprocess.Popen(
            ["make", "serve", f"HTTP_PORT={http_port}", f"GRPC_PORT={grpc_port}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a test sends Ctrl-C to its process group, as a terminal does
            # `make test ARGS=...` passes its variables on.
            env={**os.environ, "MAKEFLAGS": "", "ARGS": ""},
        )
    banner = []
    for line in _lines(process):
        banner.append(line.rstrip("\n"))
        if "curl" in line:
            return Served(process, http_port, grpc_port, banner)
    raise AssertionError(f"make serve ended: {banner}\n{log.read_text()}")


def _lines(process: "subprocess.Popen[str]") -> Iterator[str]:
    """Yield the lines of the output. A thread keeps reading them, so that the pipe never fills."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(stdout: Iterator[str]) -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
    while line := lines.get(timeout=3 * FAILSAFE_S):  # loading a model takes long
        yield line


def interrupt(served: Served) -> int:
    """Send Ctrl-C and return the exit code."""
    os.killpg(served.process.pid, signal.SIGINT)
    code = served.process.wait(FAILSAFE_S)
    if served.process.stdout is not None:
        served.process.stdout.close()
    return code
