"""Cross-origin requests: preflights and the headers of responses."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fakes.chat_service import MODEL, FakeService
from tests.support.api_keys import key, write
from tests.support.gateway import serving

ORIGIN = "https://app.example"
PAGE = "http://localhost:3000"
CHAT = "/v1/chat/completions"


@pytest.fixture
async def strict(service: FakeService) -> AsyncIterator[httpx.AsyncClient]:
    """Run a gateway with a list of origins whose pages may call it."""
    async with (
        serving(upstream=service.target, cors_allow_origins=[ORIGIN, "http://localhost:3000"]) as u,
        httpx.AsyncClient(base_url=u, headers={"origin": ORIGIN}, verify=False) as client,  # noqa: S501  # plain HTTP
    ):
        yield client


def preflight(**headers: str) -> dict[str, str]:
    return {"origin": ORIGIN, "access-control-request-method": "POST"} | headers


async def test_headers_of_the_sdk_are_allowed(url: str, http: httpx.AsyncClient) -> None:
    """The headers are taken from a request of the real client."""
    sent: list[Any] = []

    async def note(request: Any) -> None:
        sent.append(request)

    async with openai.AsyncOpenAI(
        base_url=f"{url}/v1",
        api_key="none",
        http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [note]}),
    ) as client:
        await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}]
        )
    names = ", ".join(sorted({name.lower() for name in sent[0].headers}))
    assert "x-stainless-retry-count" in names
    answer = await http.options(
        CHAT, headers=preflight(origin=PAGE, **{"access-control-request-headers": names})
    )
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == names
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/models", 200), ("POST", CHAT, 200), ("GET", "/none", 404), ("PUT", CHAT, 405)],
)
async def test_answers_and_errors_may_be_read(
    http: httpx.AsyncClient, body: dict[str, Any], method: str, path: str, status: int
) -> None:
    answer = await http.request(method, path, json=body, headers={"origin": PAGE})
    assert answer.status_code == status
    assert answer.headers["access-control-allow-origin"] == PAGE
    exposed = re.split(", *", answer.headers["access-control-expose-headers"])
    assert {"x-request-id", "retry-after"} <= set(exposed)


async def test_streams_may_be_read(http: httpx.AsyncClient, body: dict[str, Any]) -> None:
    answer = await http.post(CHAT, json=body | {"stream": True}, headers={"origin": PAGE})
    assert answer.headers["access-control-allow-origin"] == PAGE


async def test_request_without_an_origin_gets_no_cors_headers(http: httpx.AsyncClient) -> None:
    assert "access-control-allow-origin" not in (await http.get("/v1/models")).headers
    plain = await http.options(CHAT)
    assert (plain.status_code, plain.headers["allow"]) == (204, "POST")


async def test_only_listed_origins_are_allowed(strict: httpx.AsyncClient) -> None:
    allowed = await strict.options(CHAT, headers=preflight())
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert "origin" in allowed.headers["vary"].lower()
    refused = await strict.options(CHAT, headers=preflight(origin="https://evil.example"))
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "cors"
    assert "access-control-allow-origin" not in refused.headers
    read = await strict.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in read.headers


LOCAL = ["http://localhost", "https://localhost:3000", "http://127.0.0.1:5173", "http://[::1]:1"]
FOREIGN = [
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://127.0.0.1@evil.example",
    "http://10.0.0.1",
    "null",
]


@pytest.mark.parametrize("origin", [*LOCAL, "http://ui.localhost:80"])
async def test_page_of_this_machine_may_call_a_gateway_without_keys(
    http: httpx.AsyncClient, origin: str
) -> None:
    wanted = {"access-control-request-private-network": "true"}
    answer = await http.options(CHAT, headers=preflight(origin=origin, **wanted))
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-private-network"] == "true"
    read = await http.get("/v1/models", headers={"origin": origin})
    assert read.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("origin", FOREIGN)
async def test_page_of_another_site_may_not_call_a_gateway_without_keys(
    http: httpx.AsyncClient, origin: str
) -> None:
    wanted = {"access-control-request-private-network": "true"}
    answer = await http.options(CHAT, headers=preflight(origin=origin, **wanted))
    assert answer.status_code == 400
    assert not {"access-control-allow-origin", "access-control-allow-private-network"} & set(
        answer.headers
    )
    read = await http.get("/v1/models", headers={"origin": origin})
    assert "access-control-allow-origin" not in read.headers


async def test_any_page_may_call_a_gateway_with_keys(service: FakeService, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key())
    async with (
        serving(upstream=service.target, api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, verify=False) as http,  # noqa: S501  # plain HTTP
    ):
        answer = await http.options(CHAT, headers=preflight())
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers


async def test_methods_that_nothing_here_has(http: httpx.AsyncClient) -> None:
    headers = preflight(**{"access-control-request-method": "DELETE"})
    answer = await http.options(CHAT, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cors")
