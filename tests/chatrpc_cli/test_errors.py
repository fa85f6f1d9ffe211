"""The output of a failed call."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from chatrpc_cli.__main__ import app

NOWHERE = "127.0.0.1:1"  # a port that nothing listens on


def test_rejection_is_one_line_with_code_and_reason(run: Callable[..., Result]) -> None:
    result = run("chat", "too long")
    assert result.exit_code == 1
    assert result.stderr == "error: Too many tokens. [INVALID_ARGUMENT/CONTEXT_LENGTH_EXCEEDED]\n"
    assert not result.stdout


def test_error_without_details_has_only_its_code(run: Callable[..., Result]) -> None:
    result = run("chat", "break off")
    assert result.exit_code == 1
    assert result.stdout == "It was a\n"
    assert result.stderr == "error: It broke. Twice. [INTERNAL]\n"


def test_status_that_grpc_replaced_is_reported(
    run: Callable[..., Result],
) -> None:
    result = run("chat", "shout")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.endswith(" [RESOURCE_EXHAUSTED]\n")


@pytest.mark.parametrize("command", [["chat", "Hi"], ["models"], ["health"]])
def test_unreachable_target_is_reported(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--target", NOWHERE])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: no connection to {NOWHERE}: ")
    assert result.stderr.endswith(" [UNAVAILABLE]\n")
    assert result.stderr.count("\n") == 1
