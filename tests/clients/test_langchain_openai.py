"""`langchain-openai` over chat completions."""

import asyncio
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, create_model

from tests.clients.scripts import CALL, CITY, CUT, FULL, RAIN, weather
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Admit, Delta, FakeService, Hold

pytestmark = pytest.mark.clients


class City(BaseModel):
    """A place."""

    city: str


def chat(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model=MODEL, base_url=f"{url}/v1", api_key="none", **{"max_retries": 0} | options
    )


async def test_message_has_text_and_usage(url: str) -> None:
    message = await chat(url).ainvoke("Hi")
    assert message.content == "Hello world"
    assert message.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert message.usage_metadata["output_tokens"] == 2
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == MODEL


async def test_streamed_message_is_the_sum_of_its_chunks(url: str) -> None:
    chunks = [chunk async for chunk in chat(url, stream_usage=True).astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content == "Hello world"
    assert whole.usage_metadata["output_tokens"] == 2
    assert whole.response_metadata["finish_reason"] == "stop"


async def test_result_of_a_tool_call_is_sent_back(url: str, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    model = chat(url).bind_tools([weather])
    question = HumanMessage("Weather in Oslo?")
    called = await model.ainvoke([question])
    [call] = called.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Oslo"}, "call_1")
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    final = await model.ainvoke([question, called, result])
    assert final.content == "It rains in Oslo."
    sent = service.calls[-1].params
    assert [tool.function.name for tool in sent.tools] == ["weather"]
    assert sent.messages[1].tool_calls[0].function.arguments_json == '{"city": "Oslo"}'
    assert sent.messages[2].content[0].text == "Rain in Oslo."


async def test_streamed_tool_call_has_its_arguments(url: str, service: FakeService) -> None:
    service.script = CALL
    chunks = [chunk async for chunk in chat(url).bind_tools([weather]).astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    [call] = whole.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output_is_parsed(url: str, service: FakeService, method: str) -> None:
    calls = method == "function_calling"
    service.script = CALL if calls else CITY
    output = create_model("weather", __base__=City) if calls else City  # named as the tool
    parsed = await chat(url).with_structured_output(output, method=method).ainvoke("JSON")
    assert parsed == output(city="Oslo")
    sent = service.calls[-1].params
    if calls:
        assert sent.tool_choice.function_name == "weather"
    else:
        assert sent.response_format.WhichOneof("format") is not None


async def test_full_queue_is_retried(url: str, service: FakeService) -> None:
    service.turns = [[FULL]]
    message = await chat(url, max_retries=1).ainvoke("Hi")
    assert message.content == "Hello world"
    assert len(service.calls) == 2


async def test_error_in_a_stream_is_raised(url: str, service: FakeService) -> None:
    service.script = CUT
    with pytest.raises(openai.APIError):
        async for _ in chat(url).astream("Hi"):
            pass


async def test_closed_stream_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    stream = chat(url).astream("Hi")
    async for _ in stream:
        break
    await stream.aclose()
    await service.cancelled()


async def test_batch_gets_a_message_for_each_input(url: str) -> None:
    messages = await chat(url).abatch(["Hi", "Hello", "Hey"])
    assert [message.content for message in messages] == ["Hello world"] * 3


async def test_synchronous_client_streams(url: str) -> None:
    def stream() -> str:
        return "".join(str(chunk.content) for chunk in chat(url).stream("Hi"))

    assert await asyncio.to_thread(stream) == "Hello world"


async def test_embeddings_of_texts_are_those_of_the_service(url: str) -> None:
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    vectors = await embeddings.aembed_documents(["a", "ab"])
    assert vectors == [[1, 1.25, 1.5], [2, 2.25, 2.5]]
