"""`litellm` over chat completions, text completions, embeddings and Anthropic's Messages API."""

from typing import Any

import litellm
import pytest

from tests.clients.scripts import CALL, RAIN, TOO_HOT
from tests.fakes.chat_service import MODEL, FakeService

pytestmark = pytest.mark.clients

MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
PROVIDERS = ["hosted_vllm", "openai", "openai/responses", "anthropic"]


def target(url: str, provider: str) -> dict[str, Any]:
    base = url if provider == "anthropic" else f"{url}/v1"
    return {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": "none", "num_retries": 0}


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_completion_has_text_and_usage(url: str, provider: str) -> None:
    response = await litellm.acompletion(messages=MESSAGES, **target(url, provider))
    assert response.choices[0].message.content == "Hello world"
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens == 2


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_stream_has_text_reasoning_tool_call_and_usage(
    url: str, service: FakeService, provider: str
) -> None:
    service.script = CALL
    stream = await litellm.acompletion(
        messages=MESSAGES,
        tools=[TOOL],
        stream=True,
        stream_options={"include_usage": True},
        **target(url, provider),
    )
    chunks = [chunk async for chunk in stream]
    whole = litellm.stream_chunk_builder(chunks)
    [call] = whole.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Oslo"}')
    if "responses" not in provider:  # there it reads only summaries
        assert whole.choices[0].message.reasoning_content == "The user asks for the weather."
    assert whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.completion_tokens == 5


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_result_of_a_tool_call_is_sent_back(
    url: str, service: FakeService, provider: str
) -> None:
    service.turns = [CALL, RAIN]
    to = target(url, provider)
    called = await litellm.acompletion(messages=MESSAGES, tools=[TOOL], **to)
    message = called.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "Rain."}
    final = await litellm.acompletion(messages=[*MESSAGES, message, result], tools=[TOOL], **to)
    assert final.choices[0].message.content == "It rains in Oslo."
    assert service.calls[-1].params.messages[2].content[0].text == "Rain."


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_rejected_request_is_an_error_of_its_status(
    url: str, service: FakeService, provider: str
) -> None:
    service.script = [TOO_HOT]
    with pytest.raises(litellm.BadRequestError, match="Too hot"):
        await litellm.acompletion(messages=MESSAGES, **target(url, provider))


async def test_text_completion_has_text(url: str) -> None:
    to = target(url, "text-completion-openai")
    response = await litellm.atext_completion(prompt="Hi", **to)
    assert response.choices[0].text == "Hello world"


async def test_embeddings_are_those_of_the_service(url: str) -> None:
    response = await litellm.aembedding(input=["a", "ab"], **target(url, "hosted_vllm"))
    assert [each["embedding"] for each in response.data] == [[1, 1.25, 1.5], [2, 2.25, 2.5]]
