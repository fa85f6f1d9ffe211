"""Bytes that are no request, and heads without end."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest

from gateway_http.http_protocol import MAX_HEAD_BYTES
from tests.fakes.chat_service import FakeService
from tests.gateway_http.raw_http import RawClient

GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n"


async def answer(url: str, data: bytes) -> tuple[int, dict[str, str | None]]:
    """Send bytes; the status and the error object that come back before the connection ends."""
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
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS to a port that speaks none
        GET + b"No colon\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_refused_as_json(url: str, data: bytes) -> None:
    status, error = await answer(url, data)
    assert (status, error["code"]) == (400, "invalid_http")


@pytest.mark.parametrize(
    "data",
    [
        GET + b"X: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
        GET + b"X: " + b"x" * (MAX_HEAD_BYTES + 1),  # and never an end
        GET + b"X: y\r\n" * (MAX_HEAD_BYTES // 2) + b"\r\n",
        b"GET /" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_head_is_bounded(url: str, data: bytes) -> None:
    status, error = await answer(url, data)
    assert (status, error["code"]) == (431, "headers_too_large")


async def test_a_large_head_and_a_large_body_are_fine(url: str) -> None:
    async with RawClient(url) as client:
        for _ in range(3):  # on one connection: nothing adds up
            await client.send(GET + b"X: " + b"x" * (MAX_HEAD_BYTES // 2) + b"\r\n\r\n")
            assert b" 200 " in await client.read_until(b"ok\n")
        body = b" " * (2 * MAX_HEAD_BYTES)
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        assert b"parse the JSON body" in await client.read_until(b"}}")


UPGRADE = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABk"}


async def test_another_protocol_is_declined_and_the_request_answered(
    url: str, service: FakeService, body: dict[str, Any]
) -> None:
    """Java's client asks for HTTP/2 with each first request."""
    async with RawClient(url) as client:
        for _ in range(2):
            await client.post(body, headers=UPGRADE)
            assert b" 200 " in await client.read_until(b"\r\n\r\n")
            await client.read_until(b"}}")
        # In pieces, in chunks, and with others behind it.
        head = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items()).encode()
        content = json.dumps(body).encode()
        post = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
        )
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
        get = GET + head + b"\r\n"
        await client.trickle(post + head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks[:9])
        await client.send(chunks[9:] + get + get)
        for _ in range(3):
            assert b" 200 " in await client.read_until(b"\r\n\r\n")
    assert len(service.calls) == 3
    assert all(call.params.messages[0].content[0].text == "Hi" for call in service.calls)


async def test_a_body_behind_an_upgrade_is_parsed_as_any(url: str) -> None:
    head = b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    status, error = await answer(url, b"POST /v1/none HTTP/1.1\r\nHost: t\r\n" + head)
    assert (status, error["code"]) == (400, "invalid_http")


async def test_many_upgrades_at_once_are_cut_as_any(url: str) -> None:
    get = GET + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    async with RawClient(url) as client:
        with suppress(ConnectionError):
            await client.send(get * 10_000)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            while True:
                await client.read_until(b"\r\n\r\n")
