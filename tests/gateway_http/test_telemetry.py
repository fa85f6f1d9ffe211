"""What an answer counts for at the gateway."""

from typing import Any

import httpx
import pytest

from tests.gateway_http.conftest import checking_service, metric, serving

CHAT: dict[str, Any] = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "fake", "prompt": "hi"}
NUM_PROMPT_TOKENS = {"chat/completions": len("<user>hi<assistant>"), "completions": 1 + len("hi")}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(("path", "body"), [("chat/completions", CHAT), ("completions", TEXT)])
async def test_tokens_and_the_times_between_them(
    path: str, body: dict[str, Any], is_streamed: bool
) -> None:
    async with (
        checking_service() as target,  # which says "ok", in two tokens
        serving(upstream=target) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        answer = await http.post(f"/v1/{path}", json={**body, "stream": is_streamed})
        assert answer.status_code == 200
        counted = [
            await metric(http, f"chatrpc_gateway_{name}", {})
            for name in (
                "prompt_tokens_total",
                "generation_tokens_total",
                "time_to_first_token_seconds_count",
                "inter_token_latency_seconds_count",
            )
        ]
    num_gaps = 1 if is_streamed else 0
    assert counted == [NUM_PROMPT_TOKENS[path], 2, int(is_streamed), num_gaps]
