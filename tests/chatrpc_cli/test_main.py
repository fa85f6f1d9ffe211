"""Commands that have no test file of their own: health, --version and the help."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse
from typer.testing import CliRunner, Result

from chatrpc_cli.__main__ import app
from tests.chatrpc_cli.fake_service import FakeService


def test_health_exit_code_is_zero_only_if_serving(
    service: FakeService, run: Callable[..., Result]
) -> None:
    service.health.set("readiness", HealthCheckResponse.NOT_SERVING)
    result = run("health", "readiness")
    assert (result.exit_code, result.stdout) == (1, "NOT_SERVING\n")
    service.health.set("readiness", HealthCheckResponse.SERVING)
    result = run("health", "readiness")
    assert (result.exit_code, result.stdout) == (0, "SERVING\n")


def test_health_checks_the_whole_server_by_default(run: Callable[..., Result]) -> None:
    assert run("health").stdout == "SERVING\n"


def test_health_of_an_unknown_name_is_an_error(run: Callable[..., Result]) -> None:
    result = run("health", "nobody")
    assert result.exit_code == 1
    assert result.stderr.endswith("[NOT_FOUND]\n")


def test_version_is_that_of_the_distribution(tmp_path: Path) -> None:
    distribution = tmp_path / "chatrpc-7.8.9.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: chatrpc\nVersion: 7.8.9\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    output = subprocess.check_output(
        [sys.executable, "-m", "chatrpc_cli", "--version"],
        env=os.environ | {"PYTHONPATH": path},
        text=True,
    )
    assert output == "chatrpc 7.8.9\n"


@pytest.mark.parametrize("command", ["chat", "models", "health", "serve"])
def test_every_command_has_help(command: str) -> None:
    assert command in CliRunner().invoke(app, ["--help"]).stdout
    assert "Usage: " in CliRunner().invoke(app, [command, "--help"]).stdout
