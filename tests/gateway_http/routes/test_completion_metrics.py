"""The metrics of completions."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway_http.metrics import ModelLabels
from tests.support.gateway import checking_service, metric, serving

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "fake", "prompt": "hi"}
NUM_PROMPT_TOKENS = {"chat/completions": len("<user>hi<assistant>"), "completions": 1 + len("hi")}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
async def test_tokens_and_the_times_between_them(
    path: str, body: dict[str, Any], is_streamed: bool
) -> None:
    async with (
        checking_service() as target,  # it generates "ok", in two tokens
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        answer = await http.post(f"/v1/{path}", json={**body, "stream": is_streamed})
        assert answer.status_code == 200
        names = ["prompt_tokens_total", "generation_tokens_total"]
        if is_streamed:
            names += ["time_to_first_token_seconds_count", "inter_token_latency_seconds_count"]
        counted = [
            await metric(http, f"chatrpc_gateway_{name}", {"model": "fake"}) for name in names
        ]
        page = (await http.get("/metrics")).text
    assert counted == [NUM_PROMPT_TOKENS[path], 2, 1, 1][: len(names)]
    assert ("time_to_first_token_seconds_count{" in page) is is_streamed


async def test_names_that_clients_make_up_share_one_label() -> None:
    async with (
        checking_service() as target,
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        for name in ("alias", "made-up-1", "made-up-2", "alias"):
            await http.post("/v1/chat/completions", json={**CHAT, "model": name})
        requests = "chatrpc_gateway_requests_total"
        chats = {"route": "/v1/chat/completions"}
        assert await metric(http, requests, {**chats, "model": "other"}) == 2
        assert await metric(http, requests, {**chats, "model": "fake"}) == 2
        assert "made-up" not in (await http.get("/metrics")).text


async def test_aliases_of_the_registry_count_for_their_model(tmp_path: Path) -> None:
    registry = tmp_path / "registry.toml"
    async with checking_service() as target:
        registry.write_text(
            f'''
            [[model]]
            name = "mine"
            aliases = ["also-mine"]
            target = "{target}"
            upstream_model = "fake"
            '''
        )
        async with (
            serving(registry=registry) as url,
            httpx.AsyncClient(base_url=url, timeout=60) as http,
        ):
            for name in ("mine", "also-mine", "fake"):
                await http.post("/v1/chat/completions", json={**CHAT, "model": name})
            requests = "chatrpc_gateway_requests_total"
            assert await metric(http, requests, {"model": "mine", "status": "200"}) == 2
            assert await metric(http, requests, {"model": "other", "status": "404"}) == 1


def test_learned_names_are_bounded() -> None:
    models = ModelLabels()
    for number in range(2000):
        models.learn(f"name-{number}", f"model-{number}")
    assert models.of("name-1") == "model-1"
    assert models.of("name-1999") == "other"
    assert models.of("") == ""
