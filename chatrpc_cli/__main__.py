"""The commands of `chatrpc` and their options."""

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
from chatrpc_cli.chat import Conversation, converse, print_response
from chatrpc_cli.errors import reporting
from chatrpc_cli.models import as_json, as_table, served
from chatrpc_cli.serve import Stack, run

app = typer.Typer(
    help="Use and serve language models over gRPC.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(keys.app, name="keys")

Target = Annotated[
    str,
    typer.Option(help="The service's gRPC address.", metavar="HOST:PORT", envvar="CHATRPC_TARGET"),
]
DEFAULT_GRPC_PORT = 50051
DEFAULT_TARGET = f"127.0.0.1:{DEFAULT_GRPC_PORT}"


def _pem(variable: str, text: str) -> Any:
    return typer.Option(
        help=text, exists=True, dir_okay=False, readable=True, envvar=variable, metavar="FILE"
    )


Ca = Annotated[
    Path | None,
    _pem("CHATRPC_CA", "PEM file of the CA that signed the service's certificate. Enables TLS."),
]
Certificate = Annotated[
    Path | None,
    _pem("CHATRPC_CERTIFICATE", "PEM file of the client's certificate. Requires --ca and --key."),
]
CertificateKey = Annotated[
    Path | None,
    _pem("CHATRPC_CERTIFICATE_KEY", "PEM file of the client certificate's private key."),
]


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls | None:
    """Return the TLS options, or None for a plaintext connection.

    Raises:
        typer.BadParameter: An option is missing, or a file cannot be used.
    """
    if (certificate is None) != (key is None):
        raise typer.BadParameter(
            "--certificate and --key must be set together", param_hint="--certificate"
        )
    if ca is None:
        if certificate is not None:
            raise typer.BadParameter("--certificate requires --ca", param_hint="--certificate")
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
        str | None,
        typer.Argument(help="The user message. Default: standard input, or a conversation."),
    ] = None,
    *,
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    model: Annotated[
        str | None, typer.Option(help="Model id or alias. Default: the first served model.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Sampling temperature, 0 to 2; 0 is greedy. Default: the model's own."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of a response.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of random sampling. The same seed gives the same response."),
    ] = None,
) -> None:
    """Send one message to a model, or start a conversation.

    With a prompt or piped input, only the response is written to stdout. In a conversation, Ctrl-C
    stops a response. At the prompt, Ctrl-C or Ctrl-D ends the conversation.
    """
    try:
        if prompt is None and not sys.stdin.isatty():
            prompt = sys.stdin.read().rstrip("\n")
        sampling = chat_pb2.SamplingParams(
            temperature=temperature, max_completion_tokens=max_tokens, seed=seed
        )
    except ValueError as error:  # not UTF-8, or a number out of range
        raise typer.BadParameter(str(error)) from None
    tls = _tls(ca, certificate, key)
    with reporting(target):
        model = model or _first_model(target, tls)
        conversation = Conversation(target, model, sampling, system, tls)
        if prompt is None:
            converse(conversation)
        else:
            print_response(conversation, prompt)


def _first_model(target: str, tls: Tls | None) -> str:
    with channel(target, tls) as to:
        for model in served(to):
            return model.id
    typer.echo(f"error: {target} serves no model", err=True)
    raise typer.Exit(1)


@app.command()
def models(
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
    prints_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of a table.")
    ] = False,
) -> None:
    """List the served models."""
    tls = _tls(ca, certificate, key)
    with reporting(target), channel(target, tls) as to:
        found = list(served(to))
    if prints_json:
        typer.echo(as_json(found))
    else:
        Console().print(as_table(found))


@app.command()
def health(
    service: Annotated[
        str,
        typer.Argument(
            help="`readiness`, `liveness`, a gRPC service's full name or a model id. "
            "Default: the whole server.",
            show_default=False,
        ),
    ] = "",
    target: Target = DEFAULT_TARGET,
    ca: Ca = None,
    certificate: Certificate = None,
    key: CertificateKey = None,
) -> None:
    """Print the health status. The exit code is 0 only if it is SERVING."""
    tls = _tls(ca, certificate, key)
    with reporting(target), channel(target, tls) as to:
        stub = health_pb2_grpc.HealthStub(to)
        status = stub.Check(  # type: ignore[attr-defined]  # the stubs lack it
            health_pb2.HealthCheckRequest(service=service)
        ).status
    typer.echo(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    raise typer.Exit(status != health_pb2.HealthCheckResponse.SERVING)


@app.command()
def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model to load: a directory, a .gguf file or a Hugging Face id. Default: the "
            "embedded model. If the option is repeated, each model is loaded when it is needed, "
            "and NAME=MODEL names it."
        ),
    ] = None,
    registry: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of models that are loaded when they are needed, and of models of "
            "other services.",
            exists=True,
            dir_okay=False,
            metavar="FILE",
        ),
    ] = None,
    models_memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for all loaded models, such as 16GiB. The least recently used ones are "
            "unloaded for others. Default: no limit.",
            metavar="SIZE",
        ),
    ] = None,
    model_idle_timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds without requests after which a model is unloaded that was loaded on "
            "demand; 0 for never. Default: 300.",
            min=0,
            metavar="SECONDS",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address that the processes listen on.")] = "127.0.0.1",
    http_port: Annotated[
        int, typer.Option(help="HTTP port of the gateway.", min=1, max=65535, metavar="PORT")
    ] = 8000,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="gRPC port of the service, if there is one model. Default: 50051.",
            min=1,
            max=65535,
            metavar="PORT",
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="TOML file of API keys. Requests must then have one of these keys."),
    ] = None,
    is_insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Accept remote connections without authentication."),
    ] = False,
) -> None:
    """Run a service and an OpenAI-compatible HTTP gateway on this machine.

    With several models, or with a registry, the gateway starts a service for each model when it is
    needed, and stops it when it is idle or when others need its memory.

    Ctrl-C stops all processes after running requests; a second Ctrl-C stops them at once. If one
    process ends, the other is stopped, and the command returns the exit code of the first.
    """
    models = tuple(model or ())
    if models and registry is not None:
        raise typer.BadParameter("--model and --registry exclude each other", param_hint="--model")
    given = {"--models-memory": models_memory, "--model-idle-timeout-s": model_idle_timeout}
    hosting = tuple(
        text for name, value in given.items() if value is not None for text in (name, str(value))
    )
    if hosting and not (models or registry):
        raise typer.BadParameter(
            "limits of hosted models need --model or --registry",
            param_hint=hosting[0].removesuffix("-s"),
        )
    stack = Stack(
        host=host,
        http_port=http_port,
        grpc_port=grpc_port or DEFAULT_GRPC_PORT,
        models=models,
        registry=registry,
        hosting=hosting,
        api_keys=api_keys,
        is_insecure=is_insecure,
    )
    if stack.is_hosted and grpc_port is not None:
        raise typer.BadParameter(
            "models that are loaded on demand have their gRPC ports in the registry",
            param_hint="--grpc-port",
        )
    raise typer.Exit(run(stack))


if __name__ == "__main__":
    app(prog_name="chatrpc")
