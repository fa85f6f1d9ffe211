"""`langchain-anthropic` over Anthropic's Messages API."""

import asyncio
from typing import Any

import anthropic
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from pydantic import create_model

from chatrpc.v1 import chat_pb2
from tests.clients.scripts import CALL, CITY, CUT, FULL, RAIN, City, weather
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Admit, Delta, FakeService, Hold

pytestmark = pytest.mark.clients


def chat(url: str, **options: Any) -> ChatAnthropic:
    return ChatAnthropic(
        model=MODEL,
        base_url=url,
        api_key="none",
        **{"max_retries": 0, "max_tokens": 64} | options,
    )


async def test_message_has_text_and_usage(url: str) -> None:
    message = await chat(url).ainvoke([SystemMessage("Be brief."), HumanMessage("Hi")])
    assert message.text == "Hello world"
    assert message.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert message.usage_metadata["output_tokens"] == 2
    assert message.response_metadata["stop_reason"] == "end_turn"


async def test_streamed_message_is_the_sum_of_its_chunks(url: str) -> None:
    chunks = [chunk async for chunk in chat(url).astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "Hello world"
    assert whole.usage_metadata["output_tokens"] == 2
    assert whole.response_metadata["stop_reason"] == "end_turn"


@pytest.mark.parametrize("streaming", [False, True])
async def test_result_of_a_tool_call_is_sent_back(
    url: str, service: FakeService, streaming: bool
) -> None:
    service.turns = [CALL, RAIN]
    model = chat(url, streaming=streaming).bind_tools([weather])
    question = HumanMessage("Weather in Oslo?")
    called = await model.ainvoke([question])
    [call] = called.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Oslo"}, "call_1")
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    final = await model.ainvoke([question, called, result])
    assert final.text == "It rains in Oslo."
    sent = service.calls[-1].params.messages
    assert sent[1].reasoning_content == "The user asks for the weather."
    assert sent[2].role == chat_pb2.ROLE_TOOL
    assert sent[2].content[0].text == "Rain in Oslo."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_structured_output_is_parsed(url: str, service: FakeService, method: str) -> None:
    calls = method == "function_calling"
    service.script = CALL if calls else CITY
    output = create_model("weather", __base__=City) if calls else City  # named as the tool
    parsed = await chat(url).with_structured_output(output, method=method).ainvoke("JSON")
    assert parsed == output(city="Oslo")


async def test_thinking_is_a_block_of_the_content(url: str, service: FakeService) -> None:
    service.script = CALL
    model = chat(url, max_tokens=4096, thinking={"type": "enabled", "budget_tokens": 2048})
    message = await model.ainvoke("Hi")
    assert message.content_blocks[0]["type"] == "reasoning"
    assert message.content_blocks[0]["reasoning"] == "The user asks for the weather."


async def test_tokens_of_messages_are_counted(url: str) -> None:
    count = chat(url).get_num_tokens_from_messages
    assert await asyncio.to_thread(count, [HumanMessage("Hi")], tools=[weather]) > 0


async def test_full_queue_is_retried(url: str, service: FakeService) -> None:
    service.turns = [[FULL]]
    message = await chat(url, max_retries=1).ainvoke("Hi")
    assert message.text == "Hello world"
    assert len(service.calls) == 2


async def test_error_in_a_stream_is_raised(url: str, service: FakeService) -> None:
    service.script = CUT
    with pytest.raises(anthropic.APIStatusError):
        async for _ in chat(url).astream("Hi"):
            pass


async def test_closed_stream_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    stream = chat(url).astream("Hi")
    async for chunk in stream:
        if chunk.text:
            break
    await stream.aclose()
    await service.cancelled()
