"""The gateway as a process: its start, its exit and its exit codes."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from tests.fakes.chat_service import Admit, Delta, FakeService, Finish, Hold
from tests.fakes.collector import collecting
from tests.support.api_keys import key, write
from tests.support.raw_http import RawClient

PYTHON = [sys.executable, "-m"]
COMMAND = [*PYTHON, "gateway_http"]


@asynccontextmanager
async def running(
    *options: str, module: str = "gateway_http"
) -> AsyncIterator[tuple[Process, str]]:
    command = [*PYTHON, module, "--port", "0", "--log-format", "json", *options]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE)
    try:
        assert process.stderr
        async with asyncio.timeout(120):
            line = json.loads(await process.stderr.readline())
        assert line["event"] == "listening"
        yield process, f"http://{line['host']}:{line['port']}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def closed(url: str) -> None:
    """Wait until no connection to `url` can be made."""
    async with asyncio.timeout(120):
        while True:
            try:
                async with RawClient(url):
                    await asyncio.sleep(0.01)
            except OSError:
                return


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_running_requests_finish_after_a_signal(
    service: FakeService, body: dict[str, Any], number: signal.Signals
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold(), Delta(" world"), Finish()]
    async with running("--upstream", service.target) as (process, url):
        async with RawClient(url) as client:
            await client.post(body | {"stream": True})
            await client.read_until(b"Hello")
            process.send_signal(number)
            await closed(url)
            service.release()
            assert b"world" in await client.read_until(b"[DONE]")
        async with asyncio.timeout(120):
            assert await process.wait() == 0


@pytest.mark.slow
async def test_requests_are_accepted_during_the_drain_delay(
    service: FakeService, body: dict[str, Any]
) -> None:
    options = ("--upstream", service.target, "--drain-delay-s", "3600")
    async with running(*options) as (process, url), httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/readyz")).status_code == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(120):
            while (await http.get("/readyz")).status_code != 503:
                pass
        assert "shutting down" in (await http.get("/readyz")).text
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
        process.send_signal(signal.SIGINT)  # the second signal skips the delay
        async with asyncio.timeout(120):
            assert await process.wait() == 0


@pytest.mark.slow
async def test_connections_are_rejected_after_the_drain_delay() -> None:
    async with running("--drain-delay-s", "0.2") as (process, url):
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/healthz")).status_code == 200
        process.send_signal(signal.SIGTERM)
        await closed(url)
        async with asyncio.timeout(120):
            assert await process.wait() == 0


@pytest.mark.slow
async def test_integers_of_thousands_of_digits_are_not_read(
    service: FakeService, body: dict[str, Any]
) -> None:
    content = json.dumps(body | {"chat_template_kwargs": {"x": 0}}).replace("0", "9" * 1000)
    headers = {"content-type": "application/json"}
    async with (
        running("--upstream", service.target) as (_, url),
        httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http,
    ):
        answer = await http.post("/v1/chat/completions", content=content)
        param = answer.json()["error"]["param"]
        assert (answer.status_code, param) == (400, "chat_template_kwargs[...]")


@pytest.mark.slow
async def test_hanging_event_loop_ends_the_process() -> None:
    options = ("--loop-timeout-s", "3")
    async with running(*options, module="tests.fakes.hanging_gateway") as (process, url):
        with pytest.raises(httpx.HTTPError):
            async with httpx.AsyncClient(timeout=120) as http:
                await http.get(f"{url}/v1/healthz")
        _, said = await process.communicate()
        assert process.returncode == 1
        assert "event_loop_hangs" in said.decode()
        assert "hanging_gateway" in said.decode()  # the stack names the blocked module


@pytest.mark.slow
async def test_last_spans_are_exported_before_the_exit() -> None:
    with collecting() as collector:
        async with running("--otlp-endpoint", collector.url) as (process, url):
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{url}/version")).status_code == 200
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(120):
                assert await process.wait() == 0
        [request] = collector.requests
    [span] = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "GET /version"


@pytest.mark.slow
async def test_grace_has_an_end(service: FakeService, body: dict[str, Any]) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    options = ("--upstream", service.target, "--drain-timeout-s", "0")
    async with running(*options) as (process, url), RawClient(url) as client:
        await client.post(body | {"stream": True})
        await client.read_until(b"Hello")
        process.send_signal(signal.SIGTERM)
        assert b"shutting down" in await client.read_until(b"[DONE]")
        async with asyncio.timeout(120):
            assert await process.wait() == 0
        await service.cancelled()


@pytest.mark.slow
async def test_unary_request_that_outlasts_the_drain_is_an_error(
    service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Hold()]
    options = ("--upstream", service.target, "--drain-timeout-s", "0")
    async with running(*options) as (process, url), RawClient(url) as client:
        await client.post(body)
        await service.called()
        process.send_signal(signal.SIGTERM)
        assert b"503" in await client.read_until(b"shutting down")
        async with asyncio.timeout(120):
            assert await process.wait() == 0


@pytest.mark.slow
async def test_admin_port_serves_probes() -> None:
    async with running("--admin-port", "0") as (process, _):
        assert process.stderr
        line = json.loads(await process.stderr.readline())
        assert line["event"] == "listening_for_probes"
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"http://{line['host']}:{line['port']}/healthz", timeout=60)
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(120):
            assert await process.wait() == 0


async def test_idle_gateway_stops_at_once() -> None:
    async with running() as (process, url):
        async with httpx.AsyncClient() as http:
            assert (await http.get(f"{url}/healthz")).status_code == 200
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(120):
            assert await process.wait() == 0


def failed(
    *options: str, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_check_starts_nothing_and_names_every_problem(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text("[[key]]\nname = 1\nweight = 0\n")
    options = ("--api-keys", str(keys), "--upstream-api-key-file", "/none", "--registry", "/none")
    result = failed("--check", *options)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 5  # three are about the key: its name, its weight, its missing digest
    assert all(line.startswith("error: ") for line in lines)
    assert result.stdout == ""


@pytest.mark.slow
def test_check_of_valid_files_succeeds(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key())
    result = failed("--check", "--api-keys", str(keys))
    assert result.returncode == 0
    assert "are valid" in result.stdout
    assert result.stderr == f"warning: {keys}: key 1 (line 1): the key has no limit\n"


@pytest.mark.slow
def test_unknown_environment_variable_is_one_line() -> None:
    result = failed(environment={"CHATRPC_GATEWAY_BODY_TIMEOUT": "3"})
    assert result.returncode == 2
    assert "CHATRPC_GATEWAY_BODY_TIMEOUT is not an option; did you mean" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
async def test_variables_of_kubernetes_services_do_not_disturb_the_start() -> None:
    """Kubernetes sets these variables for Services called chatrpc-gateway and chatrpc."""
    links = {
        "CHATRPC_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "CHATRPC_GATEWAY_SERVICE_PORT": "8000",
        "CHATRPC_GATEWAY_SERVICE_PORT_HTTP": "8000",
        "CHATRPC_GATEWAY_PORT": "tcp://10.0.0.1:8000",
        "CHATRPC_GATEWAY_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "CHATRPC_GATEWAY_PORT_8000_TCP_PROTO": "tcp",
        "CHATRPC_GATEWAY_PORT_8000_TCP_PORT": "8000",
        "CHATRPC_GATEWAY_PORT_8000_TCP_ADDR": "10.0.0.1",
        "CHATRPC_PORT": "tcp://10.0.0.2:50051",
        "CHATRPC_SERVICE_HOST": "10.0.0.2",
        "CHATRPC_SERVICE_PORT": "50051",
    }
    command = [*COMMAND, "--port", "0", "--log-format", "json"]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, env=os.environ | links)
    assert process.stderr
    async with asyncio.timeout(120):
        warning = json.loads(await process.stderr.readline())
        listening = json.loads(await process.stderr.readline())
        process.terminate()
        await process.communicate()
    assert warning["event"] == "environment_variables_ignored"
    assert set(warning["names"]) == {name for name in links if "GATEWAY" in name}
    assert (listening["event"], listening["host"]) == ("listening", "127.0.0.1")


@pytest.mark.slow
def test_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = failed("--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot listen on 127.0.0.1:")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--port", "99999"),
        ("--config", "/none.toml"),
        ("--registry", "/none.toml"),
        ("--host", "0.0.0.0"),  # noqa: S104
        ("--api-keys", "/none.toml"),
        ("--upstream-api-key-file", "/none"),
        ("--tls-certificate", "/none.crt", "--tls-key", "/none.key"),
    ],
)
def test_bad_config_is_one_line(options: tuple[str, ...]) -> None:
    result = failed(*options)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_unknown_option_is_named() -> None:
    result = failed("--prot", "1")
    assert result.returncode != 0
    assert "--prot" in result.stderr
    assert "Traceback" not in result.stderr
