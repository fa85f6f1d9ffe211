"""The events that our code logs, read from its source."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("chatrpc_process", "service", "gateway_http", "chatrpc_cli")
_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
_LOGGERS = {"log", "_log"}


@dataclass(frozen=True)
class LogEvent:
    """A call that logs. `name` is "" if the event is not a constant."""

    name: str
    level: str
    place: str


def log_events() -> Iterator[LogEvent]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield from _events(node, f"{path.relative_to(ROOT)}:{node.lineno}")


def _events(call: ast.Call, place: str) -> Iterator[LogEvent]:
    """Yield the event of `log.info("event")` or `limited_log.write(log.info, "event")`."""
    if (level := _level(call.func)) is not None:
        yield LogEvent(_constant(call.args[0]), level, place)
    elif call.args and (level := _level(call.args[0])) is not None:
        yield LogEvent(_constant(call.args[1]), level, place)


def _level(node: ast.expr) -> str | None:
    is_logging = (
        isinstance(node, ast.Attribute)
        and node.attr in _METHODS
        and isinstance(node.value, ast.Name)
        and node.value.id in _LOGGERS
    )
    return node.attr if is_logging and isinstance(node, ast.Attribute) else None


def _constant(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ""
