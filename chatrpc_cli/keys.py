"""`chatrpc keys`: new API keys for the files that services and gateways read."""

import json
from typing import Annotated

import typer

from chatrpc_process.secret import digest_of, new_secret

app = typer.Typer(help="Make API keys.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(min=1, help="Absent: no limit.")]


@app.callback()
def main() -> None: ...


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Whose key it is; the logs have it.")],
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model it may use, or a pattern such as 'smollm2-*'. Absent: all."),
    ] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_concurrent_requests: Limit = None,
) -> None:
    """Make a key: its entry goes to stdout, its secret to stderr, this once.

    `chatrpc keys new --name checkout >> keys.toml` adds it to a file, or begins one; in a file that
    says `key = []` it takes the place of that.
    """
    if not 1 <= len(name) <= 128 or not name.isprintable():
        raise typer.BadParameter("1 to 128 printable characters", param_hint="--name")
    if not all(pattern.isprintable() for pattern in model or ()):
        raise typer.BadParameter("printable characters", param_hint="--model")
    secret = new_secret()
    options = {
        "name": name,
        "sha256": digest_of(secret),
        "models": model,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent_requests": max_concurrent_requests,
    }
    # Of printable strings, numbers and lists of strings, JSON is TOML, but for escapes in pairs.
    lines = [
        f"{name} = {json.dumps(value, ensure_ascii=False)}"
        for name, value in options.items()
        if value
    ]
    typer.echo("\n".join(["[[key]]", *lines, ""]))
    typer.echo(f"The secret, which is stored nowhere: {secret}", err=True)
