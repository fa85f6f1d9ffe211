"""Connections with invalid requests and with heads that never end."""

import asyncio
import json
from contextlib import suppress
from typing import Any, cast

import pytest

from gateway_http.http.head_limits import MAX_HEAD_BYTES
from gateway_http.metrics import Metrics
from gateway_http.server import Server
from tests.fakes.chat_service import Admit, Delta, FakeService, Hold
from tests.support.gateway import started
from tests.support.raw_http import RawClient


def app_metrics(server: Server) -> Metrics:
    metrics: Metrics = cast("Any", server.config.app).state.metrics
    return metrics


GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


async def answer(url: str, data: bytes) -> tuple[int, dict[str, str | None]]:
    """Send bytes. Return the status and the error object before the connection ends."""
    async with RawClient(url) as client:
        await client.send(data)
        head = await client.read_until(b"\r\n\r\n")
        assert b"content-type: application/json" in head
        assert b"connection: close" in head
        body = await client.read_until(b"}}")
    error: dict[str, str | None] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET \xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS to a port without TLS
        GET + b"No colon\r\n\r\n",
    ],
)
async def test_invalid_http_is_rejected_as_json(url: str, data: bytes) -> None:
    status, error = await answer(url, data)
    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "data",
    [
        GET + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        GET + b"X: " + b"x" * (MAX_HEAD_BYTES + 1),  # a head without an end
        GET + b"X: y\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_head_above_a_limit_is_rejected(url: str, data: bytes) -> None:
    status, error = await answer(url, data)
    assert (status, error["code"]) == (431, "headers_too_large")


async def test_large_head_and_large_body_are_accepted(url: str) -> None:
    async with RawClient(url) as client:
        for _ in range(3):  # on one connection, to check that each head is counted separately
            await client.send(GET + b"X: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
            assert b" 200 " in await client.read_until(b"ok\n")
        body = b" " * (2 * MAX_HEAD_BYTES)
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert b"parse the JSON body" in await client.read_until(b"}}")


UPGRADE = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}


async def test_request_for_another_protocol_is_served_with_http_1_1(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    """Java's client asks for HTTP/2 with each first request."""
    async with RawClient(url) as client:
        for _ in range(2):
            await client.post(body, headers=UPGRADE)
            assert b" 200 " in await client.read_until(b"\r\n\r\n")
            await client.read_until(b"}}")
        # It is sent in pieces, in chunks, and with other requests after it.
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items()).encode()
        content = json.dumps(body).encode()
        post = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\n"
        )
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        get = GET + head + b"\r\n"
        await client.trickle(post + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks[:9])
        await client.send(chunks[9:] + get + get)
        for _ in range(3):
            assert b" 200 " in await client.read_until(b"\r\n\r\n")
    assert len(service.calls) == 3
    assert all(call.params.messages[0].content[0].text == "Hi" for call in service.calls)


async def test_invalid_body_after_an_upgrade_is_rejected(url: str) -> None:
    head = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    status, error = await answer(url, b"POST /v1/none HTTP/1.1\r\nHost: localhost\r\n" + head)
    assert (status, error["code"]) == (400, "invalid_http")


async def test_many_pipelined_upgrades_close_the_connection(url: str) -> None:
    get = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with RawClient(url) as client:
        with suppress(ConnectionError):
            await client.send(get * 10_000)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                await client.read_until(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "invalid_http"),
        (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "invalid_http"),
        (b"GET /healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_http"),
        (b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "invalid_http"),
        (b"GET /healthz HTTP/1.1\r\nHost: http://a\r\n\r\n", 400, "invalid_http"),
        (GET + b"Expect: foo\r\n\r\n", 417, "expectation_failed"),
        (GET + b"Expect: 100-continue, foo\r\n\r\n", 417, "expectation_failed"),
    ],
)
async def test_head_that_http_forbids_is_rejected(
    url: str, head: bytes, status: int, code: str
) -> None:
    got, error = await answer(url, head)
    assert (got, error["code"]) == (status, code)


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\nExpect: foo\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: [::1]:8000\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a.localhost:80\r\nExpect: 100-Continue\r\n\r\n",
    ],
)
async def test_head_that_http_permits_is_accepted(url: str, head: bytes) -> None:
    async with RawClient(url) as client:
        await client.send(head)
        assert b" 200 " in await client.read_until(b"ok\n")


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_response_to_http_1_0_ends_with_its_connection(
    url: str, body: dict[str, Any], is_streamed: bool
) -> None:
    content = json.dumps(body | {"stream": is_streamed}).encode()
    async with RawClient(url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Connection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(content) + content
        )
        head = await client.read_until(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head
        assert (b"content-length" in head.lower()) == (not is_streamed)
        text = await client.read_all()
    if is_streamed:
        text = text.replace(b": ping\n\n", b"")  # sent if the first token is late
        assert text.startswith(b"data: {")
        assert text.endswith(b"}\n\ndata: [DONE]\n\n")
    else:
        assert json.loads(text)["object"] == "chat.completion"


def chunked(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a chat request in chunks. Each chunk has a content and an extension."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    return head + b"".join(
        b"%x%s\r\n%s\r\n" % (len(content), extension, content) for content, extension in chunks
    )


@pytest.mark.parametrize("piece", [b"1;x=%s\r\n \r\n" % (b"y" * 1000), b"y" * 1000])
async def test_chunk_extensions_are_bounded(service: FakeService, piece: bytes) -> None:
    """The request has many extensions, or one without an end."""
    async with (
        started(upstream=service.target) as (server, url),
        RawClient(url) as client,
    ):
        rejected = app_metrics(server).failures.labels("unmatched", "", "INVALID_HTTP")
        await client.send(chunked((b"{", b"")) + (b"" if b"\r" in piece else b"1;"))
        with suppress(ConnectionError):
            while rejected._value.get() == 0:
                await client.send(piece)
        head = await client.read_all()
        # The response may get lost, since the client goes on sending.
        assert b" 400 " in head or not head
        assert rejected._value.get() == 1
    assert service.calls == []


async def test_body_of_tiny_chunks_is_served(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    content = json.dumps(body).encode() + b" " * MAX_HEAD_BYTES
    async with RawClient(url) as client:
        await client.send(chunked(*((content[i : i + 1], b"") for i in range(len(content)))))
        await client.send(b"0\r\n\r\n")
        assert b" 200 " in await client.read_until(b"\r\n\r\n")


async def test_fault_during_a_response_does_not_become_a_part_of_it(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    async with RawClient(url) as client:
        await client.post(body | {"stream": True})
        await client.read_until(b"Hello")
        await client.send(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert b"HTTP/1.1" not in await client.read_all()
        await service.cancelled()
