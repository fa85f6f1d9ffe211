"""A second node on this machine: a network namespace with its own host name and shared memory."""

import os
import shutil
import subprocess
from typing import Self

# Addresses of RFC 5737, which no network uses.
HERE, THERE = "192.0.2.1", "192.0.2.2"
# The ends of the link between the nodes.
INTERFACE_HERE, INTERFACE_THERE = "vllm-here", "vllm-there"
_NAME = "chatrpc-second"


def why_unavailable() -> str:
    """Return the reason why this machine cannot have a second node; "" if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs ip, of the package iproute2"
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


class SecondNode:
    """A node that a link joins to this one. It exists within the `with` statement."""

    def __enter__(self) -> Self:
        self._remove()  # of a test that was killed
        self._run("ip", "netns", "add", _NAME)
        link = ("ip", "link", "add", INTERFACE_HERE, "type", "veth", "peer", "name")
        self._run(*link, INTERFACE_THERE, "netns", _NAME)
        self._run("ip", "address", "add", f"{HERE}/24", "dev", INTERFACE_HERE)
        self._run("ip", "link", "set", INTERFACE_HERE, "up")
        there = ("ip", "-netns", _NAME)
        self._run(*there, "address", "add", f"{THERE}/24", "dev", INTERFACE_THERE)
        for interface in (INTERFACE_THERE, "lo"):
            self._run(*there, "link", "set", interface, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def command(self, *words: str) -> list[str]:
        """Return a command that runs `words` on the second node."""
        isolate = 'hostname second; mount -t tmpfs tmpfs /dev/shm; exec "$@"'
        enter = ["ip", "netns", "exec", _NAME, "unshare", "--mount", "--ipc", "--uts"]
        return [*enter, "sh", "-ec", isolate, "sh", *words]

    def _remove(self) -> None:
        # The link goes with the namespace.
        subprocess.run(["ip", "netns", "delete", _NAME], capture_output=True, check=False)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True)
