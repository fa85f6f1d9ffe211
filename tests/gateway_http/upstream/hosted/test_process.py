"""The reasons of a service's end, and a real process that has a fake service."""

import signal
import socket
import sys
from pathlib import Path

import pytest

from gateway_http.upstream.hosted.process import ServiceLauncher, exit_reason
from gateway_http.upstream.registry import HostedModel
from tests.fakes.wait import failsafe

_FAKE_SERVICE = """
import json, os, signal, sys
print(json.dumps(sys.argv[1:]), flush=True)
print("x" * 3_000_000, file=sys.stderr)
if "bad" in sys.argv:
    sys.exit("error: There is no model 'bad'.")
signal.pause()
"""


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "The process ended with exit code 1."),
        (["Traceback", "ValueError: x"], "The process ended with exit code 1."),
        (["error: port: wrong", ""], "port: wrong"),
        (
            ['2026-12-01 [error    ] start_failed   [service.__main__] reason="It\'s bad."', "x"],
            "It's bad.",
        ),
        (["[error] start_failed [service.__main__] reason=bad"], "bad"),
        (['{"event": "start_failed", "reason": "Bad."}', '{"event": "stopped"}'], "Bad."),
        (["{", '{"event": 1}'], "The process ended with exit code 1."),
        (["error: " + "x" * 10_000], "x" * 500),
    ],
)
def test_reason_of_a_failed_start_is_what_the_service_reports(
    lines: list[str], reason: str
) -> None:
    assert exit_reason(1, lines) == reason


def test_reason_of_a_killed_process_is_the_signal() -> None:
    lines = ["error: before"]
    assert exit_reason(-signal.SIGKILL, lines) == "The process was terminated by SIGKILL."


@pytest.fixture
def fake_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `python -m service` run a fake: the working directory is searched first."""
    package = tmp_path / "service"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_FAKE_SERVICE)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("fake_service")
async def test_service_is_started_with_the_options_of_its_model(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        model = HostedModel(
            "org/m", "bad", aliases=("a,b",), arguments=("--max-num-seqs", "2"), port=port
        )
        launch = ServiceLauncher("debug", "json", Path("keys.toml"))
        with pytest.raises(OSError, match="Address already in use"):
            await launch(model)
    process = await launch(model)
    assert process.target == f"127.0.0.1:{port}"
    async with failsafe():
        assert await process.wait() == "There is no model 'bad'."
    arguments = capfd.readouterr().out
    for part in (
        '["--max-num-seqs", "2", "--model", "bad", "--served-model-name", "org/m"',
        '"--model-aliases", "[\\"a,b\\"]"',
        f'"--host", "127.0.0.1", "--port", "{port}", "--api-keys", "keys.toml"',
        '"--log-level", "debug", "--log-format", "json"',
    ):
        assert part in arguments


@pytest.mark.usefixtures("fake_service")
@pytest.mark.parametrize("method", ["terminate", "kill"])
async def test_running_service_is_ended(method: str) -> None:
    process = await ServiceLauncher()(HostedModel("m", "m"))
    async with failsafe():
        if sys.platform == "linux":
            assert process.memory_bytes() > 0
        getattr(process, method)()
        name = {"terminate": "SIGTERM", "kill": "SIGKILL"}[method]
        assert await process.wait() == f"The process was terminated by {name}."
    getattr(process, method)()  # does nothing
