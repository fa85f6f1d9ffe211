"""The commands: what they take, and what they are put together from."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console

from chatrpc.v1 import chat_pb2
from chatrpc_cli import keys
from chatrpc_cli.channels import Tls, channel
from chatrpc_cli.chat import Conversation, answer, converse
from chatrpc_cli.errors import reporting
from chatrpc_cli.models import as_json, as_table, served
from chatrpc_cli.serve import Stack, run

app = typer.Typer(
    help="Talk to language models over gRPC, and serve them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(keys.app, name="keys")

Target = Annotated[
    str,
    typer.Option(help="The service's gRPC address.", metavar="HOST:PORT", envvar="CHATRPC_TARGET"),
]
DEFAULT_TARGET = "127.0.0.1:50051"


def _pem(variable: str, text: str) -> Any:
    return typer.Option(
        help=text, exists=True, dir_okay=False, readable=True, envvar=variable, metavar="FILE"
    )


Ca = Annotated[
    Path | None,
    _pem("CHATRPC_CA", "A PEM file: call it under TLS, its certificate signed by this one."),
]
Certificate = Annotated[
    Path | None,
    _pem("CHATRPC_CERTIFICATE", "A PEM file: the client's own certificate. It needs --ca."),
]
CertificateKey = Annotated[
    Path | None,
    _pem("CHATRPC_CERTIFICATE_KEY", "A PEM file: the key of the client's certificate."),
]


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Return what the options ask for; None: a connection in the clear."""
    if (certificate is None) != (key is None):
        raise typer.BadParameter("--certificate and --key go together", param_hint="--certificate")
    if ca is None:
        if certificate is not None:
            raise typer.BadParameter("it needs --ca", param_hint="--certificate")
        return None
    tls = Tls(ca, certificate, key)
    try:
        tls.check()
    except OSError as error:
        names = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        reason = getattr(error, "reason", None) or error
        raise typer.BadParameter(f"{names}: {reason}", param_hint="--ca") from None
    return tls


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"chatrpc {version('chatrpc')}")
        raise typer.Exit


@app.callback()
def main(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


@app.command()
def chat(
    prompt: Annotated[
        str | None, typer.Argument(help="One question. Absent: piped input, or a conversation.")
    ] = None,
    *,
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    model: Annotated[
        str | None, typer.Option(help="A model id or alias. Absent: the first one served.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 to 2; 0 is greedy. Absent: the model's default.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="The most tokens an answer may have.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
) -> None:
    """Ask a model once, or converse with it.

    With a prompt or piped input the answer alone goes to stdout. In a conversation Ctrl-C stops an
    answer; at the prompt Ctrl-C or Ctrl-D leaves.
    """
    try:
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read().rstrip("\n")
        sampling = chat_pb2.SamplingParams(
            temperature=temperature, max_completion_tokens=max_tokens, seed=seed
        )
    except ValueError as error:  # not UTF-8, or a number that does not fit its field
        raise typer.BadParameter(str(error)) from None
    tls = _tls(ca, certificate, key)
    with reporting(target):
        model = model or _first_model(target, tls)
        conversation = Conversation(target, model, sampling, system, tls)
        if prompt is None:
            converse(conversation)
        else:
            answer(conversation, prompt)


def _first_model(target: str, tls: Tls | None) -> str:
    with channel(target, tls) as to:
        for model in served(to):
            return model.id
    typer.echo(f"error: no model is served at {target}", err=True)
    raise typer.Exit(1)


@app.command()
def models(
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    wants_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the models served."""
    tls = _tls(ca, certificate, key)
    with reporting(target), channel(target, tls) as to:
        found = list(served(to))
    if wants_json:
        typer.echo(as_json(found))
    else:
        Console().print(as_table(found))


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(
            help="readiness, liveness, a service's full name or a model id. Absent: the server.",
            show_default=False,
        ),
    ] = "",
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
) -> None:
    """Print the health status; exit with 0 only if it is SERVING."""
    tls = _tls(ca, certificate, key)
    with reporting(target), channel(target, tls) as to:
        stub = health_pb2_grpc.HealthStub(to)
        status = stub.Check(  # type: ignore[attr-defined]  # not in the stubs
            health_pb2.HealthCheckRequest(service=service)
        ).status
    typer.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    raise typer.Exit(status != health_pb2.HealthCheckResponse.SERVING)


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Option(help="The model to load. Absent: the service's default.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address both listen on.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option(help="The gateway's port.", min=1, max=65535, metavar="PORT")
    ] = 8000,
    grpc_port: Annotated[
        int, typer.Option(help="The service's port.", min=1, max=65535, metavar="PORT")
    ] = 50051,
    api_keys: Annotated[
        Path | None, typer.Option(help="A file of API keys: take only their owners.")
    ] = None,
    is_insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Listen beyond this machine and ask for no keys."),
    ] = False,
) -> None:
    """Run a service and an OpenAI-compatible HTTP gateway on this machine.

    Ctrl-C stops them in order, a second one kills them. If one dies, the other is stopped and its
    exit code is returned.
    """
    raise typer.Exit(run(Stack(host, http_port, grpc_port, model, api_keys, is_insecure)))


if __name__ == "__main__":
    app(prog_name="chatrpc")
