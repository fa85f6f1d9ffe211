"""Write docs/options.md from the settings: `python -m tests.options_page`."""

from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings

PAGE = Path(__file__).parent.parent / "docs" / "options.md"

_INTRODUCTION = """\
# Options

This page is generated from the settings by `python -m tests.options_page`.

Each option can be given in three places. The command line takes precedence over the environment,
and the environment over a TOML file (`--config`). The environment variable has the prefix below and
the name in capitals: `--max-num-seqs` of the service is `CHATRPC_SERVICE_MAX_NUM_SEQS`. In the file
the option is called `max_num_seqs`. Options that are on by default are turned off as in
`--no-reflection`. Lists are separated by commas.

[Old names](operations.md#renamed-options) of renamed options still work.
"""
_TITLES: dict[type[ProcessSettings], str] = {
    ServiceSettings: "The service",
    GatewaySettings: "The gateway",
}
_COMMANDS: dict[type[ProcessSettings], str] = {
    ServiceSettings: "python -m service",
    GatewaySettings: "python -m gateway_http",
}
# Defaults that are computed on the operator's machine.
_COMPUTED = {"cache_dir": "`~/.cache/chatrpc`"}


def page() -> str:
    """Return the text of docs/options.md."""
    return "\n".join([_INTRODUCTION, *(_section(kind) for kind in _TITLES)])


def _section(kind: type[ProcessSettings]) -> str:
    prefix = kind.model_config["env_prefix"]
    lines = [
        f"## {_TITLES[kind]}",
        "",
        f"`{_COMMANDS[kind]}`; environment variables begin with `{prefix}`.",
        "",
        "| option | values | default | meaning |",
        "|---|---|---|---|",
        *(_row(name, field) for name, field in kind.model_fields.items()),
        "",
    ]
    return "\n".join(lines)


def _row(name: str, field: FieldInfo) -> str:
    meaning = (field.description or "").replace("|", "\\|")
    default = _COMPUTED.get(name) or _default(field.default)
    return f"| `--{name.replace('_', '-')}` | {_values(field)} | {default} | {meaning} |"


def _default(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{value}`"


def _values(field: FieldInfo) -> str:
    return ", ".join(dict.fromkeys(_kinds(field.annotation)))


def _kinds(annotation: Any) -> Iterator[str]:
    """Yield the kinds of values of an option, in words."""
    origin = get_origin(annotation)
    if origin is Literal:
        yield from (f"`{value}`" for value in get_args(annotation))
    elif origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, UnionType):
        for each in get_args(annotation):
            yield from _kinds(each)
    elif origin is list:
        yield "list"
    elif annotation is not type(None):
        words = {"bool": "on or off", "int": "integer", "float": "number", "Path": "path"}
        yield words.get(
            annotation.__name__, "size" if annotation.__name__ == "ByteSize" else "text"
        )


if __name__ == "__main__":
    PAGE.write_text(page())
