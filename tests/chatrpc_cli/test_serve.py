"""`chatrpc serve` as a whole, run in `stack/`, where `-m` finds the fake processes first."""

import http.client
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chatrpc_cli.__main__ import app
from tests.fakes.wait import FAILSAFE_S, block_until, killed_after_failsafe

STACK = Path(__file__).with_name("stack")
ORDERLY = ["gateway stopping", "gateway stopped", "service stopping", "service stopped"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Serve:
    """A running `chatrpc serve`, leader of its own process group as under a terminal's shell."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        is_ready: bool = True,
        has_service: bool = True,
        **fakes: str,
    ) -> None:
        self.http_port, self.grpc_port = free_port(), free_port()
        self._journal = folder / "journal"
        self._gate = folder / "gate"
        if is_ready:
            self.open_gate()
        ports = ["--http-port", str(self.http_port)]
        if has_service:
            ports += ["--grpc-port", str(self.grpc_port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "chatrpc_cli", "serve", *ports, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=STACK,
            env=os.environ | fakes | {"JOURNAL": str(self._journal)},
            start_new_session=True,
        )

    def open_gate(self) -> None:
        """Make the service ready."""
        self._gate.touch()

    @property
    def events(self) -> list[str]:
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    def wait_for(self, event: str, times: int = 1) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.end()
            return self.events.count(event) >= times

        block_until(is_there)

    def pid(self, name: str) -> int:
        """Return the process id of `service` or `gateway`."""
        (event,) = [event for event in self.events if event.startswith(f"{name} started ")]
        return int(event.split()[-1])

    def banner(self) -> str:
        """Wait for the last line of the banner and return all of it."""
        assert self.process.stdout
        lines: list[str] = []
        with killed_after_failsafe(self.process):
            while not lines or "curl" not in lines[-1]:
                lines.append(self.process.stdout.readline())
                assert lines[-1], self.process.communicate()
        return "".join(lines)

    def ctrl_c(self) -> None:
        """Send SIGINT to every process of the foreground group, as a terminal does."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr, once no process has the latter two open."""
        stdout, stderr = self.process.communicate(timeout=FAILSAFE_S)
        return self.process.returncode, stdout, stderr

    def close(self) -> None:
        self.process.kill()
        self.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Serve]]:
    """Start `chatrpc serve`, at most once."""
    started: list[Serve] = []

    def start(
        *options: str, is_ready: bool = True, has_service: bool = True, **fakes: str
    ) -> Serve:
        started.append(
            Serve(tmp_path, *options, is_ready=is_ready, has_service=has_service, **fakes)
        )
        return started[0]

    yield start
    for serve in started:
        serve.close()


def test_banner_has_both_addresses_and_a_working_curl_command(
    start: Callable[..., Serve],
) -> None:
    serve = start()
    first, http_line, grpc_line, _, curl = serve.banner().splitlines()
    assert first == "it's default is ready"
    assert http_line.split() == ["HTTP", f"http://127.0.0.1:{serve.http_port}/v1"]
    assert grpc_line.split() == ["gRPC", f"127.0.0.1:{serve.grpc_port}"]

    name, url, _, header, _, data = shlex.split(curl)
    assert name == "curl"
    gateway = http.client.HTTPConnection("127.0.0.1", serve.http_port)
    gateway.request("POST", url, data, dict([header.split(": ")]))
    echo = json.load(gateway.getresponse())
    gateway.close()
    assert echo["path"] == f"http://127.0.0.1:{serve.http_port}/v1/chat/completions"
    assert echo["body"]["model"] == "it's default"
    assert f"gateway upstream 127.0.0.1:{serve.grpc_port}" in serve.events


@pytest.mark.slow
def test_wildcard_host_is_reached_through_loopback(start: Callable[..., Serve]) -> None:
    serve = start("--host", "0.0.0.0", "--model", "tiny", "--insecure")  # noqa: S104
    banner = serve.banner()
    assert banner.startswith("tiny is ready\n")
    assert "0.0.0.0" not in banner  # noqa: S104
    assert f"gateway upstream 127.0.0.1:{serve.grpc_port}" in serve.events


@pytest.mark.slow
def test_banner_waits_for_readiness(start: Callable[..., Serve]) -> None:
    serve = start(is_ready=False)
    serve.wait_for("service asked for readiness", times=2)
    assert serve.process.stdout
    assert select.select([serve.process.stdout], [], [], 0) == ([], [], [])
    serve.open_gate()
    assert "is ready" in serve.banner()


@pytest.mark.parametrize("is_ready", [True, False])
def test_ctrl_c_stops_the_gateway_then_the_service(
    start: Callable[..., Serve], is_ready: bool
) -> None:
    serve = start(is_ready=is_ready)
    if is_ready:
        serve.banner()
    else:
        serve.wait_for("service asked for readiness")
        serve.wait_for(f"gateway upstream 127.0.0.1:{serve.grpc_port}")
    serve.ctrl_c()
    code, stdout, stderr = serve.end()
    assert (code, stdout) == (0, "")
    assert stderr == "stopping; press Ctrl-C again to abort running requests\n"
    assert serve.events[-4:] == ORDERLY


@pytest.mark.slow
def test_sigterm_stops_as_ctrl_c_does(start: Callable[..., Serve]) -> None:
    serve = start()
    serve.banner()
    serve.process.terminate()
    assert serve.end()[0] == 0
    assert serve.events[-4:] == ORDERLY


@pytest.mark.slow
def test_second_ctrl_c_kills_both(start: Callable[..., Serve]) -> None:
    serve = start(FAKE_SERVICE="stubborn", FAKE_GATEWAY="stubborn")
    serve.banner()
    serve.ctrl_c()
    serve.wait_for("gateway stopping")
    serve.ctrl_c()
    assert serve.end()[0] == 130
    assert "gateway stopped" not in serve.events


def test_failed_start_of_the_service_stops_the_gateway(start: Callable[..., Serve]) -> None:
    serve = start("--model", "nonsense", FAKE_SERVICE="dies")
    code, stdout, stderr = serve.end()
    assert (code, stdout) == (3, "")
    own, ours = stderr.splitlines()
    assert own == "error: no model nonsense"
    assert ours == "error: the service ended with exit code 3"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "other"), [("service", "gateway"), ("gateway", "service")])
def test_death_of_one_process_stops_the_other(
    start: Callable[..., Serve], name: str, other: str
) -> None:
    serve = start()
    serve.banner()
    os.kill(serve.pid(name), signal.SIGKILL)
    code, _, stderr = serve.end()
    assert code == 128 + signal.SIGKILL
    assert stderr == f"error: the {name} was terminated by SIGKILL\n"
    assert serve.events[-2:] == [f"{other} stopping", f"{other} stopped"]


@pytest.mark.slow
def test_exit_of_a_child_without_an_error_is_an_error(start: Callable[..., Serve]) -> None:
    serve = start()
    serve.banner()
    os.kill(serve.pid("gateway"), signal.SIGTERM)
    assert serve.end()[0] == 1


def test_port_in_use_is_reported_before_the_start(start: Callable[..., Serve]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        serve = start("--http-port", str(port))
        code, _, stderr = serve.end()
    assert code == 1
    assert stderr == f"error: 127.0.0.1:{port}: Address already in use\n"
    assert not serve.events


@pytest.mark.slow
def test_host_of_another_machine_is_an_error(start: Callable[..., Serve]) -> None:
    code, _, stderr = start("--host", "192.0.2.1", "--insecure").end()
    assert code == 1
    assert re.fullmatch(r"error: 192\.0\.2\.1:\d+: .+\n", stderr)


def test_remote_connections_without_authentication_are_rejected_by_default(
    start: Callable[..., Serve],
) -> None:
    code, _, stderr = start("--host", "0.0.0.0").end()  # noqa: S104
    assert code == 2
    assert "--api-keys" in stderr
    assert "--insecure" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.slow
def test_key_file_is_passed_to_both_processes(start: Callable[..., Serve]) -> None:
    serve = start("--host", "0.0.0.0", "--api-keys", "keys.toml")  # noqa: S104
    serve.banner()
    assert {"service keys keys.toml", "gateway keys keys.toml"} <= set(serve.events)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is announced by Linux alone")
def test_killed_parent_ends_children_that_ignore_signals(start: Callable[..., Serve]) -> None:
    serve = start(FAKE_SERVICE="stubborn", FAKE_GATEWAY="stubborn")
    serve.banner()
    serve.process.kill()
    serve.end()  # it returns, so no process has its stderr open
    assert "gateway stopping" not in serve.events


def test_several_models_are_hosted_by_the_gateway(start: Callable[..., Serve]) -> None:
    models = ("--model", "a,b", "--model", "x=c")
    limits = ("--models-memory", "2GiB", "--model-idle-timeout", "60")
    serve = start(*models, *limits, has_service=False)
    first, http_line, *_, curl = serve.banner().splitlines()
    assert first == "Models, loaded on demand: first, second"
    assert http_line.split() == ["HTTP", f"http://127.0.0.1:{serve.http_port}/v1"]
    assert '"model": "first"' in curl
    assert 'gateway models ["a,b", "x=c"] 2GiB 60.0' in serve.events
    assert not any(event.startswith("service") for event in serve.events)
    serve.ctrl_c()
    assert serve.end()[0] == 0
    assert serve.events[-2:] == ["gateway stopping", "gateway stopped"]


@pytest.mark.slow
def test_registry_is_passed_to_the_gateway(start: Callable[..., Serve], tmp_path: Path) -> None:
    registry = tmp_path / "registry.toml"
    registry.touch()
    serve = start("--registry", str(registry), has_service=False)
    serve.banner()
    assert f"gateway registry {registry}" in serve.events
    assert "gateway models None None None" in serve.events


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--models-memory", "1GiB"), "need --model or --registry"),
        (("--model", "a", "--registry", __file__), "exclude each other"),
        (("--model", "a", "--model", "b", "--grpc-port", "5"), "in the registry"),
        (("--registry", "/nowhere.toml"), "does not exist"),
    ],
)
def test_options_of_hosted_models_that_do_not_fit_are_rejected(
    options: tuple[str, ...], words: str
) -> None:
    result = CliRunner().invoke(app, ["serve", *options])
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
