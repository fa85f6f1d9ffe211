"""A server with TLS: accepted clients, and certificates that change."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2

from chatrpc_process.errors import ConfigError
from chatrpc_process.tls import TlsFiles
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.support.tls_client import check, read, trusting
from tests.support.tls_files import issue, write


class Started:
    def __init__(self, server: Server, port: int, admin_port: int) -> None:
        self.server = server
        self.port = port
        self.admin_port = admin_port


@pytest.fixture
async def start() -> AsyncIterator[Any]:
    servers = []

    async def start(tls: TlsFiles) -> Started:
        server = Server(Lifecycle(SERVICE_NAMES), request_timeout_s=60, tls=tls)
        servers.append(server)
        port = await server.start("127.0.0.1", 0)
        return Started(server, port, await server.start_admin("127.0.0.1", 0))

    yield start
    for server in servers:
        await server.stop()


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


async def test_client_that_does_not_trust_the_certificate_cannot_connect(
    start: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    started = await start(issue(ca, tmp_path))
    await check(started.port, trusting(ca))
    for credentials in (None, trusting(trustme.CA())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(started.port, credentials)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_probes_need_no_certificate(start: Any, ca: trustme.CA, tmp_path: Path) -> None:
    started = await start(issue(ca, tmp_path))
    response = await check(started.admin_port, None)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_client_without_a_required_certificate_cannot_connect(
    start: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    files = issue(ca, tmp_path)
    clients = trustme.CA()
    write(tmp_path / "clients.crt", clients.cert_pem.bytes())
    started = await start(TlsFiles(files.certificate, files.key, tmp_path / "clients.crt"))
    await check(started.port, trusting(ca, clients.issue_cert("client")))
    for own in (None, ca.issue_cert("client")):
        with pytest.raises(grpc.aio.AioRpcError):
            await check(started.port, trusting(ca, own))


async def test_new_connection_uses_the_new_certificate(
    start: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    started = await start(issue(ca, tmp_path))
    await check(started.port, trusting(ca))
    other = trustme.CA()
    issue(other, tmp_path)
    await check(started.port, trusting(other))
    with pytest.raises(grpc.aio.AioRpcError):
        await check(started.port, trusting(ca))


async def test_invalid_certificate_file_keeps_the_old_certificate(
    start: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    files = issue(ca, tmp_path)
    started = await start(files)
    write(files.certificate, b"nonsense")
    await check(started.port, trusting(ca))


async def test_certificate_without_its_key_keeps_the_old_certificate(
    start: Any, ca: trustme.CA, tmp_path: Path
) -> None:
    files = issue(ca, tmp_path)
    started = await start(files)
    old_key = read(files.key)
    other = trustme.CA()
    issue(other, tmp_path)
    new_key = read(files.key)
    write(files.key, old_key)
    await check(started.port, trusting(ca))
    write(files.key, new_key)
    await check(started.port, trusting(other))


def test_error_for_an_unreadable_file_names_it(tmp_path: Path, ca: trustme.CA) -> None:
    files = issue(ca, tmp_path)
    with pytest.raises(ConfigError, match="none"):
        TlsFiles(tmp_path / "none", files.key).read()
    write(files.key, b"no key")
    with pytest.raises(ConfigError, match=r"tls\.key"):
        files.read()
