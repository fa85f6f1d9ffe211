"""The format of log lines, and which lines are written."""

import json
import subprocess
import sys
from typing import Any

import pytest

from chatrpc_process.logs.configuration import printable
from tests.support.params import slow_but

_SCRIPT = """
import logging, sys, warnings
import structlog
from chatrpc_process.logs.configuration import configure_logging
configure_logging(sys.argv[1], sys.argv[2])
"""


def written(code: str, level: str = "info", log_format: str = "json") -> str:
    """Run code in a process with our log configuration; return its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT + code, level, log_format],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def entries(code: str, level: str = "info") -> list[dict[str, Any]]:
    return [json.loads(line) for line in written(code, level).splitlines()]


def test_line_has_event_level_logger_and_fields() -> None:
    (entry,) = entries("structlog.get_logger('service.x').info('started', port=1)")
    assert entry.pop("timestamp")
    assert entry == {"event": "started", "level": "info", "logger": "service.x", "port": 1}


@pytest.mark.parametrize(
    ("level", "logger", "logged", "is_written"),
    [
        ("debug", "service.rpc", "debug", True),
        ("debug", "gateway_http.http.request_log", "debug", True),
        ("debug", "grpc._cython.cygrpc", "debug", False),
        ("debug", "some.library", "info", True),
        ("info", "service.rpc", "debug", False),
        ("info", "httpx", "info", False),
        ("info", "httpx", "warning", True),
        ("warning", "service.rpc", "info", False),
        ("warning", "some.library", "info", False),
        ("error", "some.library", "warning", False),
        ("error", "service.rpc", "error", True),
    ],
)
@pytest.mark.parametrize(
    "maker", slow_but({"structlog.get_logger"}, ["structlog.get_logger", "logging.getLogger"])
)
def test_debug_level_applies_to_our_loggers_only(
    maker: str, level: str, logger: str, logged: str, is_written: bool
) -> None:
    assert bool(entries(f"{maker}({logger!r}).{logged}('said')", level)) is is_written


def test_warnings_are_log_lines() -> None:
    (entry,) = entries("warnings.warn('old')")
    assert entry["level"] == "warning"
    assert "old" in entry["event"]


@pytest.mark.parametrize("log_format", slow_but({"json"}, ["json", "text"]))
@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "\x1b[31mred", "\u202egnp", "x" * 5000, "\x00"])
def test_values_stay_in_their_line_and_are_bounded(bad: str, log_format: str) -> None:
    code = f"structlog.get_logger('service').info('said', value={bad!r}, other=1)"
    said = written(code, log_format=log_format)
    assert said.count("\n") == 1
    assert said.strip().isprintable()
    assert len(said) < 2300
    assert "other" in said


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_messages_of_libraries_stay_in_their_line(log_format: str) -> None:
    code = "logging.getLogger('library').warning('one\\ntwo %s', '\\x1b[0m')"
    said = written(code, log_format=log_format)
    assert said.count("\n") == 1
    assert "\x1b" not in said


def test_exceptions_keep_their_lines_in_text() -> None:
    code = """
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("service").exception("unexpected_error")
"""
    assert "\nZeroDivisionError" in written(code, log_format="text")
    (entry,) = entries(code)
    assert "ZeroDivisionError" in entry["exception"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain text", "plain text"),
        ("né\u4e2d", "né\u4e2d"),
        ("a\tb", "a\\tb"),
        ("\ud800", "\\ud800"),
        ("abcdef", "abcd..."),
    ],
)
def test_printable_escapes_and_shortens(text: str, expected: str) -> None:
    assert printable(text, 4 if text == "abcdef" else 100) == expected
