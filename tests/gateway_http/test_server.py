"""The gateway's connections: their end at a shutdown, and their socket options."""

import socket
from typing import Any, cast

import httpx
import pytest

from tests.fakes.chat_service import FakeService
from tests.support.gateway import started
from tests.support.raw_http import RawClient

GET = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def test_answers_while_it_drains_are_the_last_of_their_connections(
    service: FakeService,
) -> None:
    """A request that is sent while its connection is being closed would be lost."""
    async with started(upstream=service.target) as (server, url), RawClient(url) as client:
        await client.send(GET)
        assert b"connection: close" not in await client.read_until(b"\r\n\r\n")
        await client.read_until(b"}")
        cast("Any", server.config.app).state.draining.set()
        await client.send(GET)
        head = await client.read_until(b"\r\n\r\n")
        assert b" 200 " in head
        assert b"connection: close" in head
        await client.read_until(b"}")
        assert await client.ended()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="not of this system")
@pytest.mark.parametrize(
    ("write_timeout_s", "user_timeout_s"), [(30, 60), (200, 400), (float("inf"), 86_400)]
)
async def test_tcp_user_timeout_exceeds_the_write_timeout(
    service: FakeService, write_timeout_s: float, user_timeout_s: int
) -> None:
    options: dict[str, Any] = {"upstream": service.target, "write_timeout_s": write_timeout_s}
    async with started(**options) as (server, url), httpx.AsyncClient(base_url=url) as http:
        assert (await http.get("/version")).status_code == 200
        [connection] = server.server_state.connections
        connected: socket.socket = connection.transport.get_extra_info("socket")
        found_ms = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert found_ms == user_timeout_s * 1000
