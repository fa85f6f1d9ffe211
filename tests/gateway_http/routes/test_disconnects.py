"""If a client disconnects at any time, its call to the service is cancelled."""

from typing import Any

import httpx
import pytest

from tests.fakes.chat_service import Admit, Delta, FakeService, Hold, Step
from tests.support.gateway import metric
from tests.support.raw_http import RawClient

WAITING_IN_THE_QUEUE: list[Step] = [Hold()]
BEFORE_THE_FIRST_TOKEN: list[Step] = [Admit(), Hold()]
MID_STREAM: list[Step] = [Admit(), Delta("Hello"), Hold()]

ROUTE = {"route": "/v1/chat/completions"}


@pytest.mark.parametrize("farewell", ["close", "reset"])
@pytest.mark.parametrize(
    ("stream", "script", "seen"),
    [
        pytest.param(False, WAITING_IN_THE_QUEUE, b"", id="whole-queued"),
        pytest.param(False, MID_STREAM, b"", id="whole-generating"),
        pytest.param(True, WAITING_IN_THE_QUEUE, b"", id="stream-queued"),
        pytest.param(True, BEFORE_THE_FIRST_TOKEN, b" 200 ", id="stream-prefill"),
        pytest.param(True, MID_STREAM, b"Hello", id="stream-generating"),
    ],
)
async def test_leaving_cancels_the_call(
    url: str,
    http: httpx.AsyncClient,
    service: FakeService,
    body: dict[str, Any],
    stream: bool,
    script: list[Step],
    seen: bytes,
    farewell: str,
) -> None:
    service.script = script
    async with RawClient(url) as client:
        await client.post(body | {"stream": stream})
        await service.called()
        if seen:
            await client.read_until(seen)
        await getattr(client, farewell)()
        await service.cancelled()

    assert await metric(http, "chatrpc_gateway_client_disconnects_total", ROUTE) == 1
    assert await metric(http, "chatrpc_gateway_requests_total", ROUTE | {"status": "499"}) == 1
    assert len(service.calls) == 1


@pytest.mark.parametrize("farewell", ["close", "reset"])
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/tokenize", {"prompt": "Hi"}),
        ("/v1/detokenize", {"tokens": [72, 105]}),
        ("/v1/embeddings", {"model": "org/tiny", "input": "Hi"}),
    ],
)
async def test_leaving_cancels_a_call_that_generates_nothing(
    url: str,
    http: httpx.AsyncClient,
    service: FakeService,
    path: str,
    content: dict[str, Any],
    farewell: str,
) -> None:
    service.holds_tokens = True
    async with RawClient(url) as client:
        await client.post(content, path)
        await service.called()
        await getattr(client, farewell)()
        await service.cancelled()

    labels = {"route": path, "status": "499"}
    assert await metric(http, "chatrpc_gateway_requests_total", labels) == 1


async def test_disconnect_during_the_body_makes_no_call(
    url: str, http: httpx.AsyncClient, service: FakeService
) -> None:
    async with RawClient(url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
    assert await metric(http, "chatrpc_gateway_requests_total", ROUTE | {"status": "499"}) == 1
    assert service.calls == []


async def test_staying_to_the_end_is_no_disconnect(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any]
) -> None:
    for stream in (False, True):
        answer = await http.post("/v1/chat/completions", json=body | {"stream": stream})
        assert answer.status_code == 200
    assert await metric(http, "chatrpc_gateway_requests_total", ROUTE | {"status": "200"}) == 2
    assert not any(call.is_cancelled for call in service.calls)


async def test_disconnect_after_pipelined_data_is_noticed(
    pinging_url: str, service: FakeService, body: dict[str, Any]
) -> None:
    service.script = MID_STREAM
    async with RawClient(pinging_url) as client:
        await client.post(body | {"stream": True})
        await client.read_until(b"Hello")
        await client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await client.read_until(b": ping")
        await client.close()
        await service.cancelled()
