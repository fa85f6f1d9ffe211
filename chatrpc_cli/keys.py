"""`chatrpc keys`: creates API keys, and checks the files that services and gateways read."""

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

app = typer.Typer(help="Create and check API keys.", no_args_is_help=True)


def _limit(text: str) -> Any:
    return typer.Option(help=f"{text} Default: no limit.")


class CacheScope(StrEnum):
    """The values of a key's `cache_scope`."""

    KEY = "key"
    SHARED = "shared"


@app.callback()
def main() -> None: ...


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Name of the key. It appears in logs.")],
    *,
    file: Annotated[
        Path | None,
        typer.Option(
            help="TOML file to add the key to. It is created if it does not exist. Default: print "
            "the entry."
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            help="Owner of the key. Keys of one owner share limits, scheduling and cached "
            "prompts. Default: the key's name."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Model that the key may use, or a pattern such as 'smollm2-*'. Repeatable. "
            "Default: all models."
        ),
    ] = None,
    requests_per_minute: Annotated[
        int | None, _limit("Maximum number of requests per minute.")
    ] = None,
    tokens_per_minute: Annotated[
        int | None, _limit("Maximum number of prompt and output tokens per minute.")
    ] = None,
    default_max_tokens: Annotated[
        int | None,
        typer.Option(
            help="Output limit of chat completions without their own limit. Requires "
            "--tokens-per-minute. Default: 1/32 of that, at least 1024 and at most 4096."
        ),
    ] = None,
    max_concurrent_requests: Annotated[
        int | None, _limit("Maximum number of concurrent requests.")
    ] = None,
    weight: Annotated[
        int | None,
        typer.Option(help="Scheduling weight relative to other owners, 1 to 100. Default: 1."),
    ] = None,
    min_priority: Annotated[
        int | None,
        typer.Option(help="Lowest (most urgent) priority that requests may set. Default: 0."),
    ] = None,
    cache_scope: Annotated[
        CacheScope | None,
        typer.Option(
            help="Sharing of cached prompts: `key` (only among the owner's keys) or "
            "`shared` (among all keys). Default: key."
        ),
    ] = None,
    may_act_for_others: Annotated[
        bool,
        typer.Option(
            "--may-act-for-others",
            help="Requests may name another caller. For the key with which a gateway calls a "
            "service.",
        ),
    ] = False,
) -> None:
    """Create an API key. Its secret is printed to stderr, once.

    With --file, the entry is added to a file, which is replaced atomically: a service that reads
    it at the same time gets the old or the new content. Without --file, the entry is printed.
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
            typer.echo(f"error: {error}; nothing was written", err=True)
            raise typer.Exit(1) from None
    typer.echo(f"The secret, which is not stored anywhere: {secret}", err=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="TOML file of API keys.", show_default=False)],
) -> None:
    """Check a file of API keys as services and gateways do, and print all of its problems.

    The exit code is 0 for a valid file, even with warnings, and 1 otherwise.
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
    """Return a key as TOML.

    Raises:
        typer.BadParameter: An option is invalid. The first such option is named.
    """
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
    # For printable strings, numbers, booleans and lists of strings, JSON is valid TOML.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in options.items()]
    return "\n".join(["[[key]]", *lines, ""])
