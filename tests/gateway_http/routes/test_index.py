"""GET /, a page for people, with and without keys."""

import re
from pathlib import Path

import httpx
import pytest

from tests.fakes.chat_service import MODEL, FakeService
from tests.support.api_keys import key, write
from tests.support.gateway import serving

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/"])
async def test_index_is_json_whose_links_work(http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    links = answer.json()["links"]
    assert {"/docs", "/v1/models", "/healthz"} <= set(links.values())
    for link in links.values():
        assert (await http.get(link)).status_code == 200
    assert MODEL not in answer.text


async def test_index_is_a_page_for_browsers(http: httpx.AsyncClient) -> None:
    answer = await http.get("/", headers={"accept": BROWSER})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"].startswith("Accept")
    assert {"/docs", "/v1/models", "/healthz"} <= set(re.findall('href="([^"]+)"', answer.text))
    assert MODEL not in answer.text


async def test_head_of_the_index_has_no_body(http: httpx.AsyncClient) -> None:
    answer = await http.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await http.post("/")).status_code == 405


async def test_index_needs_no_key(service: FakeService, tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key())
    async with (
        serving(upstream=service.target, api_keys=keys) as url,
        httpx.AsyncClient(base_url=url, verify=False) as http,  # noqa: S501  # plain HTTP
    ):
        assert (await http.get("/")).status_code == 200
        assert (await http.get("/v1/models")).status_code == 401
