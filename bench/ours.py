"""Our own service and gateway, as measured servers."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from bench.server import Ports, Server

MODEL = "smollm2-135m-instruct"
_LOG = ("--log-level", "warning")


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the service: its options and loads. Without loads, it gets the common ones."""

    title: str
    options: tuple[str, ...] = ()
    loads: tuple[str, ...] = ()


VARIANTS = {
    "chatrpc": Variant("chatrpc"),
    "chatrpc-exact": Variant("chatrpc, unquantised", ("--quantization", "none")),
    "chatrpc-plain": Variant("chatrpc, no drafts", ("--speculation", "none"), ("c1", "edit")),
}


def service_options(variant: str) -> list[str]:
    return ["--model", MODEL, *VARIANTS[variant].options]


def server(variant: str) -> Server:
    def commands(ports: Ports) -> Sequence[Sequence[str]]:
        return service_command(ports, *service_options(variant)), gateway_command(ports)

    return Server(
        name=variant,
        title=VARIANTS[variant].title,
        version=version("chatrpc"),
        settings=_settings(VARIANTS[variant].options),
        model=MODEL,
        commands=commands,
        env=os.environ,
        has_grpc=True,
    )


def service_command(ports: Ports, *options: str, python: str = sys.executable) -> Sequence[str]:
    """Return the command of the service, in the environment of `python`."""
    return (python, "-m", "service", *options, "--port", str(ports.grpc), *_LOG)


def gateway_command(ports: Ports) -> Sequence[str]:
    """Return the command of the gateway in front of the service."""
    listen = ("--upstream", f"127.0.0.1:{ports.grpc}", "--port", str(ports.http))
    return (sys.executable, "-m", "gateway_http", *listen, *_LOG)


def _settings(options: Sequence[str]) -> str:
    if not options:
        return "service and gateway as they come"
    return f"service and gateway, `{' '.join(options)}`, otherwise as they come"
