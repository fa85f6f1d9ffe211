"""The echo server, described as a server of a benchmark."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.server import Ports, Server

ECHO = Path(__file__).with_name("echo_server.py")


def echo(name: str, *arguments: str) -> Server:
    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return [(sys.executable, str(ECHO), str(ports.http), *arguments)]

    return Server(name, name, "1", "as it comes", "echo", commands, dict(os.environ))
