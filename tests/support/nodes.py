"""Two nodes on this machine: network namespaces with host names and shared memory of their own."""

import os
import shutil
import subprocess
from typing import Self

# Their addresses, of RFC 5737. Only the namespaces have them.
ADDRESSES = ("192.0.2.1", "192.0.2.2")
# The network interface of each node.
INTERFACES = ("node0", "node1")
_NAMES = ("chatrpc-node0", "chatrpc-node1")


def why_unavailable() -> str:
    """Return the reason why this machine cannot have such nodes; "" if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs ip, of the package iproute2"
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return done.stderr.strip()


class Nodes:
    """Two nodes that a link joins. They exist within the `with` statement."""

    def __enter__(self) -> Self:
        self._remove()  # those of a test that was killed
        for name in _NAMES:
            _run("ip", "netns", "add", name)
        peer = ("type", "veth", "peer", "name", INTERFACES[1], "netns", _NAMES[1])
        _run("ip", "-netns", _NAMES[0], "link", "add", INTERFACES[0], *peer)
        for name, interface, address in zip(_NAMES, INTERFACES, ADDRESSES, strict=True):
            _run("ip", "-netns", name, "address", "add", f"{address}/24", "dev", interface)
            for each in (interface, "lo"):
                _run("ip", "-netns", name, "link", "set", each, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def command(self, index: int, *words: str) -> list[str]:
        """Return a command that runs `words` on a node, in place of itself."""
        isolate = f'hostname node{index}; mount -t tmpfs tmpfs /dev/shm; exec "$@"'
        enter = ["ip", "netns", "exec", _NAMES[index], "unshare", "--mount", "--ipc", "--uts"]
        return [*enter, "sh", "-ec", isolate, "sh", *words]

    def _remove(self) -> None:
        for name in _NAMES:  # the link goes with them
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
