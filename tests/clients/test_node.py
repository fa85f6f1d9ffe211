"""Clients for Node: `openai`, `@anthropic-ai/sdk`, and `ai` with its providers."""

import json
from typing import Any

import pytest

from tests.clients.commands import NODE, SCRIPTS, run
from tests.clients.scripts import CALL, CITY, CUT, FULL, RAIN, TOO_HOT
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Admit, Delta, FakeService, Hold

pytestmark = pytest.mark.clients


async def result_of(script: str, *arguments: str) -> Any:
    """Run a script and return what it prints, which is JSON."""
    return json.loads(await run(NODE, SCRIPTS / f"{script}.mjs", *arguments, MODEL))


# -- openai ----------------------------------------------------------------------------------------


async def test_openai_creates_a_completion(url: str) -> None:
    result = await result_of("openai", "create", url)
    assert result["text"] == "Hello world"
    assert result["usage"]["prompt_tokens"] == PROMPT_TOKENS


async def test_openai_streams_a_tool_call_and_usage(url: str, service: FakeService) -> None:
    service.script = CALL
    result = await result_of("openai", "stream", url)
    assert result["call"]["name"] == "weather"
    assert result["call"]["parsed_arguments"] == {"city": "Oslo"}
    assert result["usage"]["completion_tokens"] == 5


async def test_openai_runs_tools(url: str, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    assert await result_of("openai", "tools", url) == {"text": "It rains in Oslo."}
    assert service.calls[-1].params.messages[-1].content[0].text == "Rain in Oslo."


async def test_openai_parses_a_structured_output(url: str, service: FakeService) -> None:
    service.script = CITY
    assert await result_of("openai", "parse", url) == {"parsed": {"city": "Oslo"}}
    assert service.calls[-1].params.response_format.json_schema.strict


async def test_openai_gets_embeddings(url: str) -> None:
    result = await result_of("openai", "embeddings", url)
    assert result == {"vectors": [[1, 1.25, 1.5], [2, 2.25, 2.5]]}


async def test_openai_lists_models(url: str) -> None:
    assert await result_of("openai", "models", url) == {"models": [MODEL]}


async def test_openai_retries_a_full_queue(url: str, service: FakeService) -> None:
    service.turns = [[FULL]]
    assert (await result_of("openai", "retry", url))["text"] == "Hello world"
    assert len(service.calls) == 2


async def test_openai_raises_an_error_of_the_field(url: str, service: FakeService) -> None:
    service.script = [TOO_HOT]
    error = (await result_of("openai", "rejected", url))["error"]
    assert (error["status"], error["param"]) == (400, "temperature")


async def test_openai_raises_an_error_in_a_stream(url: str, service: FakeService) -> None:
    service.script = CUT
    assert "error" in await result_of("openai", "cut", url)


async def test_openai_that_leaves_a_stream_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    await result_of("openai", "abort", url)
    await service.cancelled()


# -- @anthropic-ai/sdk -----------------------------------------------------------------------------


async def test_anthropic_creates_a_message(url: str) -> None:
    result = await result_of("anthropic", "create", url)
    assert (result["text"], result["stopReason"]) == ("Hello world", "end_turn")
    assert result["usage"]["input_tokens"] == PROMPT_TOKENS


async def test_anthropic_streams_thinking_and_a_tool_use(url: str, service: FakeService) -> None:
    service.script = CALL
    result = await result_of("anthropic", "stream", url)
    assert [block["type"] for block in result["content"]] == ["thinking", "tool_use"]
    assert result["content"][1]["input"] == {"city": "Oslo"}
    assert result["stopReason"] == "tool_use"


async def test_anthropic_runs_tools(url: str, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    assert await result_of("anthropic", "tools", url) == {"text": "It rains in Oslo."}
    sent = service.calls[-1].params.messages
    assert sent[-2].reasoning_content == "The user asks for the weather."
    assert sent[-1].content[0].text == "Rain in Oslo."


async def test_anthropic_counts_tokens(url: str) -> None:
    assert (await result_of("anthropic", "count", url))["input_tokens"] > 0


async def test_anthropic_retries_a_full_queue(url: str, service: FakeService) -> None:
    service.turns = [[FULL]]
    assert (await result_of("anthropic", "retry", url))["text"] == "Hello world"
    assert len(service.calls) == 2


async def test_anthropic_raises_an_error_of_its_status(url: str, service: FakeService) -> None:
    service.script = [TOO_HOT]
    error = (await result_of("anthropic", "rejected", url))["error"]
    assert error["status"] == 400
    assert error["body"]["error"]["type"] == "invalid_request_error"


async def test_anthropic_raises_an_error_in_a_stream(url: str, service: FakeService) -> None:
    service.script = CUT
    assert "error" in await result_of("anthropic", "cut", url)


async def test_anthropic_that_leaves_a_stream_cancels_the_call(
    url: str, service: FakeService
) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    await result_of("anthropic", "abort", url)
    await service.cancelled()


# -- ai --------------------------------------------------------------------------------------------

PROVIDERS = ["compatible", "chat", "responses", "anthropic"]


@pytest.mark.parametrize("case", ["generate", "stream"])
@pytest.mark.parametrize("provider", [*PROVIDERS, "completion"])
async def test_ai_gets_text_and_usage(url: str, case: str, provider: str) -> None:
    result = await result_of("ai", case, provider, url)
    assert (result["text"], result["finishReason"]) == ("Hello world", "stop")
    assert result["usage"]["inputTokens"] == PROMPT_TOKENS
    assert result["usage"]["outputTokens"] == 2


@pytest.mark.parametrize("case", ["tools", "streamTools"])
@pytest.mark.parametrize("provider", PROVIDERS)
async def test_ai_runs_a_tool_and_sends_its_result(
    url: str, service: FakeService, case: str, provider: str
) -> None:
    service.turns = [CALL, RAIN]
    result = await result_of("ai", case, provider, url)
    assert result["text"] == "It rains in Oslo."
    assert result["results"][0]["output"] == "Rain in Oslo."
    if provider in {"compatible", "anthropic"}:  # the others show only what OpenAI's servers return
        assert result["reasoning"] == "The user asks for the weather."
    sent = service.calls[-1].params.messages
    assert sent[-1].content[0].text == "Rain in Oslo."
    assert sent[-2].tool_calls[0].function.name == "weather"


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_ai_gets_an_object(url: str, service: FakeService, provider: str) -> None:
    service.script = CITY
    assert await result_of("ai", "object", provider, url) == {"output": {"city": "Oslo"}}


async def test_ai_gets_embeddings(url: str) -> None:
    result = await result_of("ai", "embed", "chat", url)
    assert result == {"embeddings": [[1, 1.25, 1.5], [2, 2.25, 2.5]]}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_ai_reports_an_error_of_its_status(
    url: str, service: FakeService, provider: str
) -> None:
    service.script = [TOO_HOT]
    error = (await result_of("ai", "rejected", provider, url))["error"]
    assert (error["statusCode"], error["isRetryable"]) == (400, False)
    assert "Too hot" in error["message"]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_ai_retries_a_full_queue(url: str, service: FakeService, provider: str) -> None:
    service.turns = [[FULL]]
    assert (await result_of("ai", "retry", provider, url))["text"] == "Hello world"
    assert len(service.calls) == 2


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_ai_reports_an_error_in_a_stream(
    url: str, service: FakeService, provider: str
) -> None:
    service.script = CUT
    parts = (await result_of("ai", "cut", provider, url))["parts"]
    assert "text-delta" in parts
    assert "error" in parts
