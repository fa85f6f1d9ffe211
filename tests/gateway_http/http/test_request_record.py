"""Logs and metrics of requests that are rejected before the application gets them."""

import asyncio
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import trustme
from structlog.testing import capture_logs

from gateway_http.http.request_record import RequestRecord, address
from gateway_http.server import Server
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server as Service
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.wait import until
from tests.support.gateway import serving, started
from tests.support.raw_http import RawClient
from tests.support.tls_files import issue
from tests.support.tls_files import write as write_bytes

CHAT = "/v1/chat/completions"
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


def value(server: Server, name: str, **labels: str) -> float:
    app: Any = server.config.app
    return app.state.metrics.registry.get_sample_value(name, labels) or 0.0


async def line(logs: list[Any], event: str) -> Any:
    """Wait for the line of this event, and check that it is the only one."""
    await until(lambda: any(each["event"] == event for each in logs))
    (found,) = (each for each in logs if each["event"] == event)
    return found


@pytest.mark.parametrize(
    ("sent", "status", "reason"),
    [
        (b"nonsense\r\n\r\n", 400, "INVALID_HTTP"),
        (HEAD + b"X: " + b"x" * (65 << 10) + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (HEAD, 408, "REQUEST_TIMEOUT"),
    ],
)
async def test_early_rejections_are_counted_and_logged_once(
    sent: bytes, status: int, reason: str
) -> None:
    with capture_logs() as logs:
        async with started(head_timeout_s=0.3) as (server, url):
            for _ in range(20):
                async with RawClient(url) as client:
                    await client.send(sent)
                    assert str(status).encode() in await client.read_until(b"\r\n")
            labels = {"route": "unmatched", "model": ""}
            counted = value(server, "chatrpc_gateway_requests_total", status=str(status), **labels)
            failed = value(
                server, "chatrpc_gateway_request_failures_total", reason=reason, **labels
            )
    assert counted == failed == 20
    logged = await line(logs, "request_rejected")
    assert (logged["status"], logged["reason"]) == (status, reason)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", logged["client"])


async def test_surplus_connections_are_counted_and_logged() -> None:
    with capture_logs() as logs:
        async with started(max_connections=1) as (server, url), RawClient(url) as busy:
            await busy.send(HEAD)  # a request has begun, so the connection is not idle
            connections: Any = server.server_state.connections
            await until(lambda: any(one._is_in_head for one in connections))
            async with RawClient(url) as surplus:
                await surplus.send(HEAD)
                assert b"503" in await surplus.read_until(b"\r\n")
            labels = {"route": "unmatched", "model": "", "status": "503"}
            assert value(server, "chatrpc_gateway_requests_total", **labels) == 1
    logged = await line(logs, "request_rejected")
    assert (logged["status"], logged["reason"]) == (503, "TOO_MANY_CONNECTIONS")
    assert not any(each["event"] == "connection_cut" for each in logs)


async def test_connection_that_sends_nothing_is_cut_and_logged() -> None:
    with capture_logs() as logs:
        async with started(head_timeout_s=0.05) as (_, url), RawClient(url) as client:
            assert await client.ended()
    logged = await line(logs, "connection_cut")
    assert logged["reason"] == "head"
    assert re.fullmatch(r"127\.0\.0\.1:\d+", logged["client"])


async def test_failed_tls_handshakes_are_counted_and_logged(tmp_path: Path) -> None:
    files = issue(trustme.CA(), tmp_path)
    with capture_logs() as logs:
        async with started(tls_certificate=files.certificate, tls_key=files.key) as (server, url):
            for _ in range(3):
                await asyncio.to_thread(distrust, url)
            counted = "chatrpc_gateway_tls_handshake_failures_total"
            await until(lambda: value(server, counted) == 3)
            async with RawClient(url) as plain:
                await plain.send(HEAD + b"\r\n")
            await until(lambda: value(server, counted) == 4)
    reasons = [each["reason"] for each in logs if each["event"] == "tls_handshake_failed"]
    assert reasons == ["TLSV1_ALERT_UNKNOWN_CA", "HTTP_REQUEST"]


def distrust(url: str) -> None:
    """Send the TLS alert of a client that does not trust the CA of the certificate."""
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname, address.port)) as connection,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(connection, server_hostname="localhost")


@pytest.mark.parametrize("is_known", [False, True])
async def test_service_whose_certificate_is_not_trusted_is_named_in_the_log(
    tmp_path: Path, body: dict[str, Any], is_known: bool
) -> None:
    ca = trustme.CA()
    server = Service(Lifecycle(SERVICE_NAMES), request_timeout_s=60, tls=issue(ca, tmp_path))
    port = await server.start("127.0.0.1", 0)
    trusted = tmp_path / "ca.pem"
    write_bytes(trusted, (ca if is_known else trustme.CA()).cert_pem.bytes())
    with capture_logs() as logs:
        async with (
            serving(upstream=f"localhost:{port}", upstream_ca=trusted) as url,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            answer = await http.post(CHAT, json=body)
        await until(lambda: any(each["event"] == "request_finished" for each in logs))
    await server.stop()
    (logged,) = (each for each in logs if each["event"] == "request_finished")
    assert logged["reason"] == ("UPSTREAM_NOT_READY" if is_known else "UPSTREAM_TLS_FAILED")
    assert answer.status_code == 503
    told = "The model is not ready." if is_known else "The model service cannot be reached."
    assert answer.json()["error"]["message"] == f"{told} Please retry later."


async def test_service_under_tls_that_is_called_in_the_clear_is_unavailable(
    tmp_path: Path, body: dict[str, Any]
) -> None:
    server = Service(
        Lifecycle(SERVICE_NAMES), request_timeout_s=60, tls=issue(trustme.CA(), tmp_path)
    )
    port = await server.start("127.0.0.1", 0)
    with capture_logs() as logs:
        async with (
            serving(upstream=f"localhost:{port}") as url,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            assert (await http.post(CHAT, json=body)).status_code == 503
        await until(lambda: any(each["event"] == "request_finished" for each in logs))
    await server.stop()
    (logged,) = (each for each in logs if each["event"] == "request_finished")
    # The service closes the connection before or after gRPC counts it as ready.
    assert logged["reason"] in {"UPSTREAM_UNREACHABLE", "UPSTREAM_CONNECTION_LOST"}
    assert logged["cause"]


async def test_service_that_does_not_answer_in_time_is_a_timeout(body: dict[str, Any]) -> None:
    with capture_logs() as logs, socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        async with (
            serving(upstream=f"127.0.0.1:{port}", request_timeout_s=0.2) as url,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            assert (await http.post(CHAT, json=body)).status_code in (503, 504)
        await until(lambda: any(each["event"] == "request_finished" for each in logs))
    (logged,) = (each for each in logs if each["event"] == "request_finished")
    assert logged["reason"] == "UPSTREAM_TIMEOUT"


def test_record_has_only_known_fields() -> None:
    assert RequestRecord().log_fields() == {}
    record = RequestRecord(model="m", is_streamed=False, cached_tokens=0)
    assert record.log_fields() == {"model": "m", "is_streamed": False, "cached_tokens": 0}


@pytest.mark.parametrize(
    ("client", "expected"),
    [(("127.0.0.1", 1), "127.0.0.1:1"), (("::1", 2), "[::1]:2"), (None, "")],
)
def test_address_is_host_and_port(client: tuple[str, int] | None, expected: str) -> None:
    assert address(client) == expected
