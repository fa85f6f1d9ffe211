"""The processes of `chatrpc serve`: their commands, their readiness and the banner.

For one model, these are a service and a gateway. For several, it is a gateway that hosts the
models: it starts and stops a service for each.
"""

import asyncio
import http.client
import json
import shlex
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chatrpc.v1 import model_service_pb2, model_service_pb2_grpc
from chatrpc_cli.credentials import KEY_VARIABLE, credentials
from chatrpc_cli.supervisor import supervise
from chatrpc_process.settings.loopback import is_loopback

POLL_S = 0.2
# Seconds for which running requests may continue after Ctrl-C. It is short, since a user waits.
GRACE_S = 5
# Loading can take half a minute, and gRPC's default backoff would grow to as much. No proxy may be
# used between two processes on one machine.
CHANNEL_OPTIONS = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.enable_http_proxy", 0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The processes to run. They listen on `host`.

    Attributes:
        grpc_port: The port of the service, if there is only one model.
        models: Models, each as `MODEL` or `NAME=MODEL`. If there is none, and no registry, the
            service loads its default.
        registry: A registry file; None if there is none.
        hosting: Options of the gateway about hosted models, and their values.
    """

    host: str
    http_port: int
    grpc_port: int
    models: tuple[str, ...] = ()
    registry: Path | None = None
    hosting: tuple[str, ...] = ()
    api_keys: Path | None = None
    is_insecure: bool = False

    @property
    def is_hosted(self) -> bool:
        """True if the gateway hosts the models."""
        return len(self.models) > 1 or self.registry is not None or bool(self.hosting)

    @property
    def commands(self) -> dict[str, list[str]]:
        """The commands of the processes, by their names, in the order of their start."""
        if self.is_hosted:
            return {"gateway": self._gateway_command(self._models_options())}
        upstream = ["--upstream", self.grpc_address]
        return {"service": self._service_command(), "gateway": self._gateway_command(upstream)}

    @property
    def local_host(self) -> str:
        """A host at which this machine can connect to a process that listens on `host`."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    @property
    def http_address(self) -> str:
        return _address(self.local_host, self.http_port)

    @property
    def grpc_address(self) -> str:
        return _address(self.local_host, self.grpc_port)

    @property
    def ports(self) -> list[int]:
        """The ports that the processes listen on."""
        return [self.http_port] if self.is_hosted else [self.http_port, self.grpc_port]

    def _service_command(self) -> list[str]:
        model = ["--model", *self.models] if self.models else []
        listen = ["--host", self.host, "--port", str(self.grpc_port)]
        drain = ["--drain-timeout-s", str(GRACE_S)]
        return [sys.executable, "-m", "service", *model, *listen, *drain, *self._access()]

    def _gateway_command(self, origin: list[str]) -> list[str]:
        listen = ["--host", self.host, "--port", str(self.http_port)]
        drain = ["--drain-timeout-s", str(GRACE_S)]
        return [sys.executable, "-m", "gateway_http", *listen, *origin, *drain, *self._access()]

    def _models_options(self) -> list[str]:
        if self.registry is not None:
            return ["--registry", str(self.registry), *self.hosting]
        return ["--models", json.dumps(self.models), *self.hosting]  # a path may contain a comma

    def is_unauthenticated(self) -> bool:
        """Return True if the processes would accept remote connections without authentication."""
        return not (self.api_keys or self.is_insecure or is_loopback(self.host))

    def _access(self) -> list[str]:
        keys = [] if self.api_keys is None else ["--api-keys", str(self.api_keys)]
        return [*keys, *(["--insecure"] if self.is_insecure else [])]


def run(stack: Stack) -> int:
    """Run both processes until a signal or until one of them ends. Return the exit code."""
    if stack.is_unauthenticated():
        typer.echo(
            f"error: host {stack.host} accepts remote connections: set --api-keys FILE to "
            "authenticate them, or --insecure to accept them without authentication",
            err=True,
        )
        return 2
    # A process that already listens on a port could be mistaken for the one that is started here.
    for port in stack.ports:
        try:
            _try_to_listen(stack.host, port)
        except OSError as error:
            typer.echo(f"error: {_address(stack.host, port)}: {error.strerror}", err=True)
            return 1
    return asyncio.run(supervise(stack.commands, lambda: _announce(stack)))


async def _announce(stack: Stack) -> None:
    """Print the banner when all processes are ready."""
    if stack.is_hosted:
        await _gateway_ready(stack.local_host, stack.http_port)
        names = await asyncio.to_thread(_hosted_models, stack.local_host, stack.http_port)
        typer.echo(_banner(stack, names[0], f"Models, loaded on demand: {', '.join(names)}"))
        return
    model = await _ready_model(stack.grpc_address)
    await _gateway_ready(stack.local_host, stack.http_port)
    typer.echo(_banner(stack, model, f"{model} is ready"))


async def _ready_model(target: str) -> str:
    """Wait until the service is ready. Return the id of its first model.

    The result is "MODEL" if the service rejects the API key.
    """
    async with grpc.aio.insecure_channel(target, CHANNEL_OPTIONS) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        while True:
            with suppress(grpc.RpcError):
                check = await health.Check(  # type: ignore[attr-defined]  # the stubs lack it
                    health_pb2.HealthCheckRequest(service="readiness")
                )
                if check.status == health_pb2.HealthCheckResponse.SERVING:
                    return await _first_model(models)
            await asyncio.sleep(POLL_S)


async def _first_model(models: Any) -> str:
    try:
        page = await models.ListModels(
            model_service_pb2.ListModelsRequest(), metadata=credentials()
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return "MODEL"
        raise
    return str(page.models[0].id)


async def _gateway_ready(host: str, port: int) -> None:
    """Wait until the gateway is ready. The thread of the wait ends when the gateway ends, too."""
    while True:
        if await asyncio.to_thread(_is_gateway_ready, host, port):
            return
        await asyncio.sleep(POLL_S)


def _is_gateway_ready(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _hosted_models(host: str, port: int) -> list[str]:
    """Return the names of the gateway's models; ["MODEL"] if it rejects the API key."""
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("GET", "/v1/models", headers=dict(credentials()))
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            return ["MODEL"]
        return [str(model["id"]) for model in json.load(response)["data"]] or ["MODEL"]
    finally:
        connection.close()


def _banner(stack: Stack, model: str, headline: str) -> str:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello!"}]})
    url = f"http://{stack.http_address}/v1"
    key = f' -H "x-api-key: ${KEY_VARIABLE}"' if stack.api_keys else ""
    kind = f"-H 'content-type: application/json'{key}"
    return (
        f"{headline}\n"
        f"  HTTP  {url}\n"
        + ("" if stack.is_hosted else f"  gRPC  {stack.grpc_address}\n")
        + f"Try it:\n"
        f"  curl {url}/chat/completions {kind} -d {shlex.quote(body)}"
    )


def _try_to_listen(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # both servers set it, too
        listener.bind((host, port))


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
