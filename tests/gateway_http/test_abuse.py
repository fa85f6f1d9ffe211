"""Clients that occupy resources: each gets the documented error, and others are not affected."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from gateway_http.http.head_limits import MAX_HEADERS
from gateway_http.http.http11 import MAX_PIPELINED
from gateway_http.metrics import Metrics
from gateway_http.server import Server
from tests.fakes.chat_service import Admit, Delta, FakeService, Hold
from tests.fakes.wait import until
from tests.support.gateway import serving, started
from tests.support.raw_http import RawClient
from tests.support.tls_files import issue

HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
POST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n"
)
CHAT = "/v1/chat/completions"
# Timeouts in seconds: of a body, and of a head, which must be longer than a busy machine needs to
# send one.
SOON, SOON_ENOUGH = 0.05, 0.5


@asynccontextmanager
async def gateway(service: FakeService, **options: Any) -> AsyncIterator[tuple[str, Metrics]]:
    """Run a gateway. Yield its URL and its metrics, which are read without a request."""
    async with started(upstream=service.target, **options) as (server, url):
        app: Any = server.config.app
        yield url, app.state.metrics


async def cut(metrics: Metrics, reason: str) -> None:
    """Wait until one connection has been closed for this reason."""
    counter = metrics.cut_connections.labels(reason)
    await until(lambda: counter._value.get() == 1)


async def answered(metrics: Metrics, status: int) -> None:
    """Wait until one chat request has got a response with this status."""
    labels = {"route": CHAT, "status": str(status)}

    def number() -> float:
        (family,) = metrics.requests.collect()
        return sum(s.value for s in family.samples if labels.items() <= s.labels.items())

    await until(lambda: number() == 1)


def tls(directory: Path) -> tuple[dict[str, Any], ssl.SSLContext]:
    """Return the options of a gateway with TLS, and the TLS context of its client."""
    ca = trustme.CA()
    files = issue(ca, directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.configure_trust(context)
    return {"tls_certificate": files.certificate, "tls_key": files.key}, context


def num_busy(server: Server) -> int:
    """Return the number of connections on which a request is being received or served."""
    connections: Any = server.server_state.connections
    return sum(not connection._is_between_requests for connection in connections)


async def error(client: RawClient) -> tuple[int, str]:
    """Return the status and the code of the error after which the connection is closed."""
    head = await client.read_until(b"\r\n\r\n")
    assert b"connection: close" in head
    body = json.loads(await client.read_until(b"}}"))
    assert await client.ended()
    return int(head.split()[1]), body["error"]["code"]


@pytest.mark.parametrize("sent", [b"G", HEAD, HEAD + b"X: ", HEAD + b"\r\n" + HEAD])
async def test_incomplete_head_is_rejected_after_the_timeout(
    service: FakeService, sent: bytes
) -> None:
    async with (
        gateway(service, head_timeout_s=SOON_ENOUGH) as (url, metrics),
        RawClient(url) as client,
    ):
        await client.send(sent)
        if sent.count(b"GET") == 2:
            await client.read_until(b"ok\n")
        assert await error(client) == (408, "request_timeout")
        await cut(metrics, "head")


async def test_slow_head_is_rejected_after_the_timeout(service: FakeService) -> None:
    """Each byte arrives soon after the last one, but the head is never complete."""
    async with gateway(service, head_timeout_s=SOON_ENOUGH) as (url, _), RawClient(url) as client:
        trickle = asyncio.ensure_future(client.trickle(HEAD + b"X: " + b"x" * 10**5))
        assert await error(client) == (408, "request_timeout")
        trickle.cancel()


@pytest.mark.parametrize("sent", [b"", b"\r\n"])
async def test_connection_without_a_request_is_closed_silently(
    service: FakeService, sent: bytes
) -> None:
    async with gateway(service, head_timeout_s=SOON_ENOUGH) as (url, _), RawClient(url) as client:
        await client.send(sent)
        assert await client.ended()


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_incomplete_body_is_rejected_after_the_timeout(
    service: FakeService, is_chunked: bool
) -> None:
    async with gateway(service, body_timeout_s=SOON) as (url, metrics), RawClient(url) as client:
        sent = POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
        await client.send(sent + b"1\r\n{\r\n" if is_chunked else POST + b"{")
        assert await error(client) == (408, "request_timeout")
        await answered(metrics, 408)
    assert service.calls == []


async def test_rest_of_a_rejected_body_is_not_awaited(
    service: FakeService,
) -> None:
    async with gateway(service, body_timeout_s=SOON) as (url, metrics), RawClient(url) as client:
        await client.send(POST.replace(b"application/json", b"text/plain") + b"{")
        assert b" 415 " in await client.read_until(b"\r\n\r\n")
        await client.read_until(b"}}")
        assert await client.ended()
        await cut(metrics, "body")


async def test_response_may_take_longer_than_request_timeouts(
    service: FakeService, body: dict[str, Any]
) -> None:
    """The timers of the request are stopped at its end."""
    service.script = [Admit(), Hold(), Delta("late")]
    soon = {"head_timeout_s": SOON_ENOUGH, "body_timeout_s": SOON, "write_timeout_s": SOON}
    async with (
        gateway(service, sse_ping_interval_s=SOON, **soon) as (url, _),
        RawClient(url) as client,
    ):
        await client.post(body | {"stream": True})
        for _ in range(15):
            await client.read_until(b": ping")
        # The timeout of a pipelined request has not begun either.
        await client.send(HEAD)
        for _ in range(15):
            await client.read_until(b": ping")
        service.release()
        await client.read_until(b"[DONE]")


async def test_headers_are_counted(service: FakeService) -> None:
    async with gateway(service) as (url, _):
        async with RawClient(url) as client:
            await client.send(HEAD + b"X: y\r\n" * (MAX_HEADERS - 1) + b"\r\n")
            assert b" 200 " in await client.read_until(b"ok\n")
        async with RawClient(url) as client:
            await client.send(HEAD + b"X: y\r\n" * MAX_HEADERS + b"\r\n")
            assert await error(client) == (431, "headers_too_large")


async def test_trailers_are_no_headers_and_bounded(service: FakeService) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]}).encode()
    sent = POST.replace(b"Content-Length: 100", b"Transfer-Encoding: chunked")
    sent += b"%x\r\n%s\r\n0\r\n" % (len(body), body)
    async with gateway(service) as (url, _):
        async with RawClient(url) as client:
            await client.send(sent + b"x-api-key: late\r\n\r\n")
            assert b" 200 " in await client.read_until(b"\r\n\r\n")
            await service.called()
            assert "x-api-key" not in service.calls[0].metadata
        async with RawClient(url) as client:
            await client.send(sent + b"X: y\r\n" * (MAX_HEADERS + 1) + b"\r\n")
            assert b" 431 " in await client.read_until(b"headers_too_large")


async def test_idle_connections_are_closed(service: FakeService) -> None:
    async with gateway(service, keep_alive_timeout_s=0) as (url, _), RawClient(url) as client:
        await client.send(HEAD + b"\r\n")
        await client.read_until(b"ok\n")
        assert await client.ended()


async def test_connection_idle_longest_is_closed_for_a_new_one(service: FakeService) -> None:
    async with (
        started(upstream=service.target, max_connections=3) as (server, url),
        RawClient(url) as busy,
        RawClient(url) as first,
        RawClient(url) as second,
    ):
        await busy.send(POST)
        await until(lambda: num_busy(server) == 1)
        for client in (second, first, second):
            await client.send(HEAD + b"\r\n")
            await client.read_until(b"ok\n")
        async with RawClient(url) as third:
            await third.send(HEAD + b"\r\n")
            assert b" 200 " in await third.read_until(b"ok\n")
            assert await first.ended()
            await cut(server.config.app.state.metrics, "idle")  # type: ignore[union-attr]  # the app
            await second.send(HEAD + b"\r\n")
            assert b" 200 " in await second.read_until(b"ok\n")
            await busy.send(b"{" + b" " * 99)
            assert b" 400 " in await busy.read_until(b"\r\n\r\n")


async def test_many_idle_connections_cause_no_rejection(service: FakeService) -> None:
    async with (
        started(upstream=service.target, max_connections=20) as (server, url),
        AsyncExitStack() as stack,
    ):
        for _ in range(60):
            client = await stack.enter_async_context(RawClient(url))
            await client.send(HEAD + b"\r\n")
            assert b" 200 " in await client.read_until(b"ok\n")
        assert len(server.server_state.connections) <= 20


async def test_connections_of_one_address_are_bounded(service: FakeService) -> None:
    async with (
        started(upstream=service.target, max_connections=9, max_connections_per_address=2) as (
            server,
            url,
        ),
        RawClient(url) as first,
        RawClient(url) as second,
    ):
        for client in (first, second):
            await client.send(HEAD + b"\r\n")
            await client.read_until(b"ok\n")
        async with RawClient(url) as third:
            await third.send(HEAD)
            assert await first.ended()
            await second.send(HEAD)
            await until(lambda: num_busy(server) == 2)
            async with RawClient(url) as surplus:
                await surplus.send(HEAD)
                assert await error(surplus) == (503, "server_is_overloaded")


async def test_connections_are_bounded(service: FakeService) -> None:
    async with started(upstream=service.target, max_connections=3) as (server, url):
        connections = server.server_state.connections
        idle = [RawClient(url) for _ in range(3)]
        for client in idle:
            await client.__aenter__()
            await client.send(HEAD)  # the connection is not idle: a request has begun
        await until(lambda: num_busy(server) == 3)
        async with RawClient(url) as surplus:
            await surplus.send(HEAD + b"\r\n")
            assert await error(surplus) == (503, "server_is_overloaded")
        await until(lambda: len(connections) == 3)
        silent = [RawClient(url) for _ in range(3)]
        for client in silent:
            await client.__aenter__()
        await until(lambda: len(connections) == 6)
        async with RawClient(url) as hopeless:
            assert await hopeless.ended()
        for client in silent + idle[:1]:
            await client.close()
        await until(lambda: len(connections) == 2)
        await idle[1].send(b"\r\n")
        await idle[1].read_until(b"ok\n")
        async with RawClient(url) as next_one:
            await next_one.send(HEAD + b"\r\n")
            await next_one.read_until(b"ok\n")
        for client in idle[1:]:
            await client.close()


async def test_pipelined_requests_are_bounded(service: FakeService, body: dict[str, Any]) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    async with gateway(service) as (url, metrics), RawClient(url) as client:
        await client.post(body | {"stream": True})
        await client.read_until(b"Hello")  # a comment may come before it
        await client.read_until(b"\n\n\r\n")
        await client.send((HEAD + b"\r\n") * (MAX_PIPELINED + 2))
        assert await client.ended()
        await service.cancelled()
        await cut(metrics, "limit")


async def test_unread_stream_ends_with_its_generation(
    service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), *([Delta("x" * 60_000)] * 400), Hold()]
    async with (
        gateway(service, write_timeout_s=0.2) as (url, metrics),
        RawClient(url, receive_buffer=4096) as client,
    ):
        await client.post(body | {"stream": True})
        await service.cancelled()
        await cut(metrics, "write")
        await answered(metrics, 499)


async def test_unread_response_is_dropped(service: FakeService, body: dict[str, Any]) -> None:
    service.script = [Admit(), *([Delta("x" * 60_000)] * 200)]
    async with (
        started(upstream=service.target, write_timeout_s=0.2) as (server, url),
        RawClient(url, receive_buffer=4096) as client,
    ):
        await client.post(body, headers={"connection": "close"})
        await service.called()
        await until(lambda: not server.server_state.connections)


@pytest.mark.parametrize("is_tls", [False, True])
async def test_small_stream_that_is_not_read_is_cut_in_time(
    service: FakeService, body: dict[str, Any], tmp_path: Path, is_tls: bool
) -> None:
    """The unsent bytes fit into the kernel's buffer, so only the kernel's queue shows them."""
    num_bytes = 300_000
    service.script = [Admit(), *([Delta("x" * 1000)] * (num_bytes // 1000)), Hold()]
    options, context = tls(tmp_path) if is_tls else ({}, None)
    async with (
        gateway(service, write_timeout_s=0.5, **options) as (url, metrics),
        RawClient(url, receive_buffer=4096, tls=context) as client,
    ):
        await client.post(body | {"stream": True})
        await service.cancelled()
        await cut(metrics, "write")
        await answered(metrics, 499)


async def test_stream_that_is_read_slowly_goes_on(
    service: FakeService, body: dict[str, Any]
) -> None:
    """Bytes wait at each check, but never the same bytes for as long as the timeout."""
    service.script = [Admit(), *([Delta("x" * 1000)] * 1000)]
    async with (
        gateway(service, write_timeout_s=0.5) as (url, metrics),
        RawClient(url, receive_buffer=4096) as client,
    ):
        await client.post(body | {"stream": True})
        await client.read_until(b"\r\n\r\n")
        for _ in range(40):
            await client.read(20_000)
            await asyncio.sleep(0.05)
        rest = b""
        while b"[DONE]" not in rest[-100:]:
            piece = await client.read(1 << 20)
            assert piece
            rest += piece
        await answered(metrics, 200)


async def test_slow_readers_do_not_delay_others(service: FakeService, body: dict[str, Any]) -> None:
    service.script = [Admit(), *([Delta("x" * 60_000)] * 200)]
    async with (
        serving(upstream=service.target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        idle = [RawClient(url, receive_buffer=4096) for _ in range(10)]
        for client in idle:
            await client.__aenter__()
            await client.post(body | {"stream": True})
        await service.called(10)
        answer = await http.post("/v1/chat/completions", json=body | {"stream": True})
        assert answer.text.endswith("data: [DONE]\n\n")
        for client in idle:
            await client.reset()
        await service.cancelled(10)
