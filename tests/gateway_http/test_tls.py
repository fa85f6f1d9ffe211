"""The gateway with TLS: accepted clients, certificates that change, and the port for probes."""

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import uvloop

from chatrpc_process.errors import ConfigError
from chatrpc_process.tls import TlsFiles, watch_tls
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.server import Server
from tests.fakes.chat_service import Admit, Delta, FakeService, Finish, Hold
from tests.support.api_keys import SECRET, key, write
from tests.support.gateway import started
from tests.support.raw_http import RawClient
from tests.support.tls_files import issue, lock
from tests.support.tls_files import write as write_bytes

END = "-----END CERTIFICATE-----"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def trusting(ca: trustme.CA, own: trustme.LeafCert | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    if own is not None:
        own.configure_cert(context)
    return context


def options(files: TlsFiles) -> dict[str, Any]:
    return {
        "tls_certificate": files.certificate,
        "tls_key": files.key,
        "tls_client_ca": files.client_ca,
    }


@asynccontextmanager
async def under(files: TlsFiles, service: FakeService, **more: Any) -> AsyncIterator[str]:
    async with started(upstream=service.target, **options(files), **more) as (_, url):
        yield url


async def probe(url: str, context: ssl.SSLContext) -> int:
    """Return the status of /readyz, requested on a new connection."""
    async with httpx.AsyncClient(verify=context, timeout=60) as http:
        return (await http.get(f"{url}/readyz")).status_code


async def assert_rejected(url: str, context: ssl.SSLContext) -> None:
    with pytest.raises(httpx.TransportError):
        await probe(url, context)


async def test_clients_that_trust_it_get_in_and_no_others(
    ca: trustme.CA, tmp_path: Path, service: FakeService
) -> None:
    async with under(issue(ca, tmp_path), service) as url:
        assert await probe(url, trusting(ca)) == 200
        await assert_rejected(url, trusting(trustme.CA()))
        await assert_rejected(url.replace("https:", "http:"), trusting(ca))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_clients_show_a_certificate_where_they_must(
    ca: trustme.CA, tmp_path: Path, service: FakeService, version: ssl.TLSVersion
) -> None:
    files = issue(ca, tmp_path)
    clients, others = trustme.CA(), trustme.CA()
    write_bytes(tmp_path / "clients.crt", clients.cert_pem.bytes())
    files = TlsFiles(files.certificate, files.key, tmp_path / "clients.crt")
    async with under(files, service) as url:
        for issuer, gets_in in ((clients, True), (others, False), (None, False)):
            own = None if issuer is None else issuer.issue_cert("client")
            context = trusting(ca, own)
            context.maximum_version = version
            if gets_in:
                assert await probe(url, context) == 200
            else:
                await assert_rejected(url, context)
        # The CA of clients is reloaded like the other files.
        write_bytes(tmp_path / "clients.crt", others.cert_pem.bytes())
        assert await probe(url, trusting(ca, others.issue_cert("client"))) == 200
        await assert_rejected(url, trusting(ca, clients.issue_cert("client")))


async def test_new_connections_see_a_new_certificate_and_old_ones_go_on(
    ca: trustme.CA, tmp_path: Path, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold(), Delta(" world"), Finish()]
    other = trustme.CA()
    async with (
        under(issue(ca, tmp_path), service) as url,
        httpx.AsyncClient(base_url=url, verify=trusting(ca), timeout=60) as http,
        http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer,
    ):
        pieces = answer.aiter_text()
        while "Hello" not in await anext(pieces):
            pass
        issue(other, tmp_path)
        assert await probe(url, trusting(other)) == 200
        await assert_rejected(url, trusting(ca))
        service.release()
        assert "[DONE]" in "".join([piece async for piece in pieces])


async def test_handshake_that_is_not_begun_is_closed(
    ca: trustme.CA, tmp_path: Path, service: FakeService
) -> None:
    files = issue(ca, tmp_path)
    async with under(files, service, head_timeout_s=0.05) as url, RawClient(url) as client:
        assert await client.ended()


async def test_half_a_pair_or_nonsense_leaves_the_old_one(
    ca: trustme.CA, tmp_path: Path, service: FakeService
) -> None:
    files = issue(ca, tmp_path)
    old = files.certificate.read_bytes()
    async with under(files, service) as url:
        for content in (b"nonsense", b"-----BEGIN nonsense", trustme.CA().cert_pem.bytes()):
            write_bytes(files.certificate, content)
            assert await probe(url, trusting(ca)) == 200
        other = trustme.CA()
        issue(other, tmp_path)
        new = files.certificate.read_bytes()
        write_bytes(files.certificate, old)
        assert await probe(url, trusting(ca)) == 200
        write_bytes(files.certificate, new)
        assert await probe(url, trusting(other)) == 200


def test_certificates_change_under_load_as_the_gateway_runs(ca: trustme.CA, tmp_path: Path) -> None:
    """On uvloop, which has its own TLS, each handshake uses the old pair or the new one."""
    files = issue(ca, tmp_path)
    settings = Settings(port=0, **options(files))
    loops: list[str] = []

    async def rotate() -> None:
        loops.append(type(asyncio.get_running_loop()).__module__)
        server = Server(settings)
        with server.bind() as listener:
            port = listener.getsockname()[1]
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup([listener])
            stop = threading.Event()
            clients = [asyncio.to_thread(handshakes, port, stop) for _ in range(3)]
            running = [asyncio.ensure_future(client) for client in clients]
            for _ in range(20):
                issue(ca, tmp_path)
                assert await asyncio.to_thread(served, port) == own(files)
            stop.set()
            assert min(await asyncio.gather(*running)) > 0
            await server.shutdown([listener])

    def handshakes(port: int, stop: threading.Event) -> int:
        number = 0
        while not stop.is_set():
            served(port)
            number += 1
        return number

    def served(port: int) -> bytes:
        """Return the certificate that a new connection gets. Its CA must be trusted."""
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as raw,
            trusting(ca).wrap_socket(raw, server_hostname="localhost") as connection,
        ):
            return connection.getpeercert(binary_form=True) or b""

    def own(files: TlsFiles) -> bytes:
        return ssl.PEM_cert_to_DER_cert(files.certificate.read_text().split(END)[0] + END)

    uvloop.run(rotate())
    assert loops == ["uvloop"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_ends_when_its_client_ca_is_replaced(
    ca: trustme.CA, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """In a resumed session, the client sends no certificate. This uses uvloop, as the gateway."""
    files, clients = issue(ca, tmp_path), trustme.CA()
    write_bytes(tmp_path / "clients.crt", clients.cert_pem.bytes())
    files = TlsFiles(files.certificate, files.key, tmp_path / "clients.crt")
    context = trusting(ca, clients.issue_cert("client"))
    context.maximum_version = version

    def ask(port: int, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as raw,
            context.wrap_socket(raw, server_hostname="localhost", session=session) as connection,
        ):
            connection.sendall(
                b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            )
            if not connection.recv(1):
                raise ConnectionResetError
            return connection.session

    async def exchange() -> None:
        async with started(**options(files)) as (_, url):
            port = int(url.rpartition(":")[2])
            session = await asyncio.to_thread(ask, port)
            await asyncio.to_thread(ask, port, session)
            write_bytes(tmp_path / "clients.crt", trustme.CA().cert_pem.bytes())
            with pytest.raises(OSError):  # noqa: PT011  # an error of TLS or TCP, now or at the read
                await asyncio.to_thread(ask, port, session)

    uvloop.run(exchange())


async def test_admin_port_serves_only_probes_without_key_or_tls(
    ca: trustme.CA, tmp_path: Path, service: FakeService
) -> None:
    keys = write(tmp_path / "keys.toml", key())
    more: dict[str, Any] = {"api_keys": keys, "admin_port": 0, "upstream": service.target}
    async with started(**options(issue(ca, tmp_path)), **more) as (server, url):
        assert server.admin_address
        admin = f"http://127.0.0.1:{server.admin_address[1]}"
        async with httpx.AsyncClient(timeout=60) as http:
            for endpoint in ENDPOINTS:
                for prefix in ("", "/v1"):
                    path = prefix + endpoint.path.replace("{model_id}", "org/tiny")
                    answer = await http.request(endpoint.method, admin + path)
                    is_there = endpoint.admin_handler is not None
                    assert answer.status_code == (200 if is_there else 404), path
            assert "chatrpc_gateway_requests_total" in (await http.get(f"{admin}/metrics")).text
        headers = {"x-api-key": SECRET}
        async with httpx.AsyncClient(verify=trusting(ca), timeout=60, headers=headers) as http:
            assert (await http.get(f"{url}/v1/models")).status_code == 200
            await service.set_ready(False)
            for readyz in (f"{admin}/readyz", f"{url}/readyz"):
                assert (await http.get(readyz)).status_code == 503


async def test_admin_port_is_not_ready_during_the_drain(
    service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold(), Finish()]
    async with started(upstream=service.target, admin_port=0) as (server, url):
        assert server.admin_address
        admin = f"http://127.0.0.1:{server.admin_address[1]}"
        async with (
            httpx.AsyncClient(base_url=url, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as answer,
            httpx.AsyncClient(timeout=60) as probes,
        ):
            pieces = answer.aiter_text()
            while "Hello" not in await anext(pieces):
                pass
            assert (await probes.get(f"{admin}/readyz")).status_code == 200
            ending = asyncio.ensure_future(server.shutdown([]))
            while (await probes.get(f"{admin}/readyz")).status_code == 200:
                pass
            assert (await probes.get(f"{admin}/healthz")).status_code == 200
            service.release()
            assert "[DONE]" in "".join([piece async for piece in pieces])
        await ending
        async with httpx.AsyncClient(timeout=60) as probes:
            with pytest.raises(httpx.ConnectError):
                await probes.get(f"{admin}/healthz")


def test_key_with_a_passphrase_is_rejected(tmp_path: Path, ca: trustme.CA) -> None:
    files = issue(ca, tmp_path)
    lock(files.key)
    with pytest.raises(ConfigError, match=r"tls\.key"):
        watch_tls(files)
