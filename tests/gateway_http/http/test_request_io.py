"""Bodies of the wrong kind or size."""

from typing import Any

import httpx
import pytest

from tests.fakes.chat_service import FakeService
from tests.support.gateway import serving
from tests.support.raw_http import RawClient

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"]
)
async def test_json_is_taken(
    http: httpx.AsyncClient, body: dict[str, Any], content_type: str
) -> None:
    answer = await http.post(PATH, json=body, headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_other_content_types_are_rejected_with_a_hint(
    http: httpx.AsyncClient, content_type: str
) -> None:
    answer = await http.post(PATH, content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 415
    error = answer.json()["error"]
    assert error["code"] == "unsupported_content_type"
    assert "-H 'Content-Type: application/json'" in error["message"]


async def test_size_is_limited(service: FakeService, body: dict[str, Any]) -> None:
    async def trickle() -> Any:
        for _ in range(1000):
            yield b" " * 100

    async with (
        serving(upstream=service.target, max_body_bytes=1000) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        for content in (b" " * 1001, trickle()):
            answer = await http.post(PATH, content=content, headers=JSON)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
        assert (await http.post(PATH, json=body)).status_code == 200
    assert len(service.calls) == 1


async def test_large_body_is_rejected_before_it_is_sent(url: str) -> None:
    async with RawClient(url) as client:
        await client.send(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000000000\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert (await client.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 413 ")
