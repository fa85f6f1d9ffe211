"""`chatrpc keys`: makes API keys, and checks the files that services and gateways read."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from chatrpc_cli.key_file import add_key
from chatrpc_process.access.keys import Key, check_keys
from chatrpc_process.access.secret import digest_of, new_secret
from chatrpc_process.errors import ConfigError

app = typer.Typer(help="Make and check API keys.", no_args_is_help=True)

Limit = Annotated[int | None, typer.Option(help="Absent: no limit.")]


class CacheScope(StrEnum):
    KEY = "key"
    SHARED = "shared"


@app.callback()
def main() -> None: ...


@app.command()
def new(
    name: Annotated[str, typer.Option(help="The key's name, which logs contain.")],
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            help="The file to add the key to; it is made if there is none. Absent: print the entry."
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            help="Whose key it is: keys of one owner share limits, turns and cached prompts. "
            "Absent: its name."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model it may use, or a pattern such as 'smollm2-*'. Absent: all."),
    ] = None,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    default_max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Output limit of a chat that sets none; needs --tokens-per-minute. "
            "Absent: 1/32 of that, between 1024 and 4096."
        ),
    ] = None,
    max_concurrent_requests: Limit = None,
    weight: Annotated[
        int | None, typer.Option(help="Turns in a round, 1 to 100. Absent: 1.")
    ] = None,
    min_priority: Annotated[
        int | None,
        typer.Option(help="The lowest, so the most urgent, priority it may set. Absent: 0."),
    ] = None,
    cache_scope: Annotated[
        CacheScope | None,
        typer.Option(help="Whether its cached prompts are shared with all keys. Absent: key."),
    ] = None,
    may_act_for_others: Annotated[
        bool, typer.Option("--may-act-for-others", help="For the key of a gateway at a service.")
    ] = False,
) -> None:
    """Make a key. Its secret is printed to stderr, only this once.

    With --file its entry is added to a file, which is replaced as a whole: a service that reads the
    file meanwhile sees the old content or the new one. Without --file the entry is printed.
    """
    secret = new_secret()
    options = {
        "name": name,
        "sha256": digest_of(secret),
        "owner": owner,
        "models": model,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "default_max_tokens": default_max_tokens,
        "max_concurrent_requests": max_concurrent_requests,
        "weight": weight,
        "min_priority": min_priority,
        "cache_scope": None if cache_scope is None else cache_scope.value,
        "may_act_for_others": may_act_for_others or None,
    }
    entry = _entry({name: value for name, value in options.items() if value not in (None, [])})
    if file is None:
        typer.echo(entry)
    else:
        try:
            add_key(file, entry)
        except (ConfigError, OSError) as error:
            typer.echo(f"error: {error}; nothing is written", err=True)
            raise typer.Exit(1) from None
    typer.echo(f"The secret, which is stored nowhere: {secret}", err=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A file of API keys.", show_default=False)],
) -> None:
    """Check a file of API keys as services and gateways do, and print all of its problems.

    The exit code is 0 for a valid file, also if there are warnings, and otherwise 1.
    """
    try:
        found = check_keys(file)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    for problem in found.problems:
        typer.echo(f"error: {file}: {problem}", err=True)
    for warning in found.warnings:
        typer.echo(f"warning: {file}: {warning}", err=True)
    if found.problems:
        raise typer.Exit(1)
    typer.echo(f"The file is valid. Keys: {len(found.keys)}")


def _entry(options: dict[str, Any]) -> str:
    """Write a key as TOML; raise BadParameter for the first option that no file could contain."""
    try:
        Key.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        option = str(first["loc"][0]) if first["loc"] else "default_max_tokens"
        raise typer.BadParameter(
            first["msg"].removeprefix("Value error, "),
            param_hint="--"
            + option.removesuffix("s" if option == "models" else "").replace("_", "-"),
        ) from None
    # Of printable strings, numbers, booleans and lists of strings, JSON is TOML.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in options.items()]
    return "\n".join(["[[key]]", *lines, ""])
