"""`langchain-openai` over chat completions and over OpenAI's Responses API."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import create_model

from tests.clients.scripts import CALL, CITY, CUT, FULL, RAIN, City, weather
from tests.fakes.chat_service import MODEL, PROMPT_TOKENS, Admit, Delta, FakeService, Hold

pytestmark = pytest.mark.clients


Chat = Callable[..., ChatOpenAI]


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def chat(request: pytest.FixtureRequest, url: str) -> Chat:
    def make(**options: Any) -> ChatOpenAI:
        return ChatOpenAI(
            model=MODEL,
            base_url=f"{url}/v1",
            api_key="none",
            use_responses_api=request.param,
            **{"max_retries": 0} | options,
        )

    return make


def is_complete(message: AIMessage) -> bool:
    metadata = message.response_metadata
    return "stop" in metadata.values() or "completed" in metadata.values()


async def test_message_has_text_and_usage(chat: Chat) -> None:
    message = await chat().ainvoke("Hi")
    assert message.text == "Hello world"
    assert message.usage_metadata["input_tokens"] == PROMPT_TOKENS
    assert message.usage_metadata["output_tokens"] == 2
    assert is_complete(message)
    assert message.response_metadata["model_name"] == MODEL


async def test_streamed_message_is_the_sum_of_its_chunks(chat: Chat) -> None:
    chunks = [chunk async for chunk in chat(stream_usage=True).astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "Hello world"
    assert whole.usage_metadata["output_tokens"] == 2
    assert is_complete(whole)


async def test_result_of_a_tool_call_is_sent_back(chat: Chat, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    model = chat().bind_tools([weather])
    question = HumanMessage("Weather in Oslo?")
    called = await model.ainvoke([question])
    [call] = called.tool_calls
    assert (call["name"], call["args"], call["id"]) == ("weather", {"city": "Oslo"}, "call_1")
    result = ToolMessage(weather(**call["args"]), tool_call_id=call["id"])
    final = await model.ainvoke([question, called, result])
    assert final.text == "It rains in Oslo."
    sent = service.calls[-1].params
    assert [tool.function.name for tool in sent.tools] == ["weather"]
    assert sent.messages[1].tool_calls[0].function.arguments_json == '{"city": "Oslo"}'
    assert sent.messages[2].content[0].text == "Rain in Oslo."


async def test_streamed_tool_call_has_its_arguments(chat: Chat, service: FakeService) -> None:
    service.script = CALL
    chunks = [chunk async for chunk in chat().bind_tools([weather]).astream("Hi")]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    [call] = whole.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Oslo"})


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_structured_output_is_parsed(chat: Chat, service: FakeService, method: str) -> None:
    calls = method == "function_calling"
    service.script = CALL if calls else CITY
    output = create_model("weather", __base__=City) if calls else City  # named as the tool
    parsed = await chat().with_structured_output(output, method=method).ainvoke("JSON")
    assert parsed == output(city="Oslo")
    sent = service.calls[-1].params
    if calls:
        assert sent.tool_choice.function_name == "weather"
    else:
        assert sent.response_format.WhichOneof("format") is not None


async def test_full_queue_is_retried(chat: Chat, service: FakeService) -> None:
    service.turns = [[FULL]]
    message = await chat(max_retries=1).ainvoke("Hi")
    assert message.text == "Hello world"
    assert len(service.calls) == 2


async def test_error_in_a_stream_is_raised(chat: Chat, service: FakeService) -> None:
    service.script = CUT
    with pytest.raises((openai.APIError, ValueError)):  # the latter for the event of a failure
        async for _ in chat().astream("Hi"):
            pass


async def test_closed_stream_cancels_the_call(chat: Chat, service: FakeService) -> None:
    service.script = [Admit(), Delta("Hello"), Hold()]
    stream = chat().astream("Hi")
    async for _ in stream:
        break
    await stream.aclose()
    await service.cancelled()


async def test_batch_gets_a_message_for_each_input(chat: Chat) -> None:
    messages = await chat().abatch(["Hi", "Hello", "Hey"])
    assert [message.text for message in messages] == ["Hello world"] * 3


async def test_synchronous_client_streams(chat: Chat) -> None:
    def stream() -> str:
        return "".join(chunk.text for chunk in chat().stream("Hi"))

    assert await asyncio.to_thread(stream) == "Hello world"


async def test_embeddings_of_texts_are_those_of_the_service(url: str) -> None:
    embeddings = OpenAIEmbeddings(
        model=MODEL, base_url=f"{url}/v1", api_key="none", check_embedding_ctx_length=False
    )
    vectors = await embeddings.aembed_documents(["a", "ab"])
    assert vectors == [[1, 1.25, 1.5], [2, 2.25, 2.5]]
