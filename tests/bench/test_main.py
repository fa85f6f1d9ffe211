"""The commands, as processes: one load against a server of our own, and the report."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import report, server
from tests.bench import runs
from tests.bench.echo import echo

ROOT = Path(__file__).parent.parent.parent
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'protos'}"}


def bench(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENV, capture_output=True, text=True, check=False)


@pytest.fixture
async def url(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    running = await server.start(echo("a", *getattr(request, "param", ())), tmp_path, settle_s=0.0)
    running.group.thaw()
    [port] = {
        connection.laddr.port
        for process in running.group.tree()
        for connection in process.net_connections()
        if connection.status == "LISTEN"
    }
    yield f"http://127.0.0.1:{port}/v1"
    await running.end()


async def test_load_command_prints_json(url: str) -> None:
    done = bench(
        "load", "--url", url, "--clients", "2", "--requests", "5", "--tokens", "3", "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"]["num_output_tokens"] == 15


@pytest.mark.slow
async def test_open_loop_command_prints_a_table(url: str) -> None:
    done = bench("load", "--url", url, "--rate", "200", "--requests", "5", "--tokens", "3")
    assert done.returncode == 0, done.stderr
    assert "ttft_ms" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("url", [["short"]], indirect=True)
async def test_load_command_with_a_wrong_response_fails(url: str) -> None:
    done = bench("load", "--url", url, "--requests", "2", "--tokens", "3")
    assert done.returncode == 1
    assert "2 of 2 requests: 2 tokens instead of 3" in done.stdout


@pytest.mark.slow
def test_load_command_without_a_target_fails() -> None:
    assert bench("load").returncode == 2
    assert bench("load", "--url", "http://a/v1", "--grpc", "b:1").returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--loads"),
        ("run", "--variants"),
        ("run", "--shape"),
        ("peers", "--peers"),
        ("peers", "--loads"),
        ("rates", "--peers"),
    ],
)
def test_unknown_name_is_rejected_before_anything_starts(
    arguments: tuple[str, ...],
) -> None:
    done = bench(*arguments, "nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr


@pytest.mark.slow
def test_report_command_renders_the_published_results(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    report.publish(runs.results(), docs)
    page = (docs / "benchmarks.md").read_text()
    (docs / "benchmarks.md").unlink()
    done = bench("report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (docs / "benchmarks.md").read_text() == page
