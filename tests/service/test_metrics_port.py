"""The port for metrics, and its limits."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from service.metrics_port import MetricsPort
from tests.fakes.wait import until

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(**limits: Any) -> AsyncIterator[int]:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    port = MetricsPort(registry, **limits)
    try:
        yield await port.start("127.0.0.1", 0)
    finally:
        await port.stop()


async def fetch(port: int, method: str = "GET", path: str = "/metrics") -> httpx.Response:
    async with httpx.AsyncClient(verify=False, timeout=60) as http:  # noqa: S501  # plain HTTP
        return await http.request(method, f"http://127.0.0.1:{port}{path}")


async def test_metrics_are_served() -> None:
    async with serving() as port:
        page = await fetch(port)
        head = await fetch(port, "HEAD")
    assert page.status_code == head.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=")
    assert "answer 42.0" in page.text
    assert head.text == ""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/debug/pprof", 404),
        ("GET", "/metrics/x", 404),
        ("GET", "/favicon.ico", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/metrics", 405),
    ],
)
async def test_other_requests_are_rejected(method: str, path: str, status: int) -> None:
    async with serving() as port:
        assert (await fetch(port, method, path)).status_code == status


@pytest.mark.parametrize(
    ("sent", "received"),
    [
        (b"nonsense\r\n\r\n", b" 400 "),
        (b"GET /metrics HTTP/9.9\r\n\r\n", b" 505 "),
        (b"\x16\x03\x01\r\n\r\n", b" 400 "),
        (b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 100_000, b""),
    ],
)
async def test_invalid_request_is_rejected(sent: bytes, received: bytes) -> None:
    async with serving() as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        try:
            response = await reader.read()
        except ConnectionError:  # the connection was closed before all bytes were read
            response = b""
        assert received in response
        writer.close()


async def test_incomplete_requests_block_no_thread_and_no_scrape() -> None:
    async with serving() as port:
        num_threads = threading.active_count()
        connections = [await half_request(port) for _ in range(300)]
        page = await fetch(port)
        assert page.status_code == 200
        assert threading.active_count() <= num_threads + 1  # one more thread renders the page
        await until(lambda: sum(is_closed(each) for each in connections) >= 300 - 32)
        for _, writer in connections:
            writer.close()


async def test_incomplete_request_is_closed_after_the_timeout() -> None:
    async with serving(timeout_s=0.05) as port:
        reader, writer = await half_request(port)
        assert await reader.read() == b""
        writer.close()


async def test_oldest_connection_is_closed_for_a_new_one() -> None:
    async with serving(max_connections=2) as port:
        first, second, third = [await half_request(port) for _ in range(3)]
        await until(lambda: is_closed(first))
        assert not is_closed(second)
        second[1].write(b"\r\n")
        assert b"answer 42.0" in await second[0].read()
        for _, writer in (first, second, third):
            writer.close()


async def test_port_in_use_is_reported_in_one_line() -> None:
    async with serving() as port:
        other = MetricsPort(CollectorRegistry())
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await other.start("127.0.0.1", port)


async def half_request(port: int) -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n")
    await writer.drain()
    return reader, writer


def is_closed(connection: Connection) -> bool:
    reader, _ = connection
    return reader.at_eof() or reader.exception() is not None
