"""The real OpenAI client, plain, async and with its stream helper."""

import asyncio
from typing import Any

import grpc
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

from chatrpc.v1 import chat_pb2
from tests.fakes.chat_service import MODEL, Admit, Delta, Fail, FakeService, Finish, Hold, tool_call

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


async def test_chat_completion_is_created(url: str) -> None:
    async with client(url) as openai_client:
        raw = await openai_client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, extra_body={"ignore_eos": True}
        )
    answer = raw.parse()
    assert answer.choices[0].message.content == "Hello world"
    assert answer.choices[0].message.tool_calls is None
    assert answer.usage
    assert answer.usage.total_tokens == 9
    assert raw.headers["x-request-id"]


async def test_streamed_request_sends_events_until_done(url: str) -> None:
    async with client(url) as openai_client:
        stream = await openai_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "Hello world"
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 2


async def test_synchronous_client_works(url: str) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as sync_client:
            stream = sync_client.chat.completions.create(
                model=MODEL, messages=MESSAGES, stream=True
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert await asyncio.to_thread(ask) == "Hello world"


async def test_stream_helper_with_two_choices(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("b", index=1), Delta("a"), Finish(), Finish(index=1)]
    async with (
        client(url) as openai_client,
        openai_client.chat.completions.stream(model=MODEL, messages=MESSAGES, n=2) as stream,
    ):
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["a", "b"]
    assert [choice.message.role for choice in final.choices] == ["assistant", "assistant"]
    assert [choice.finish_reason for choice in final.choices] == ["stop", "stop"]


async def test_stream_helper_with_a_tool_call(url: str, service: FakeService) -> None:
    service.script = [
        Admit(),
        tool_call("", "call_1", "weather"),
        tool_call('{"city"'),
        tool_call(':"Oslo"}'),
        Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
    ]
    async with (
        client(url) as openai_client,
        openai_client.chat.completions.stream(model=MODEL, messages=MESSAGES) as stream,
    ):
        final = await stream.get_final_completion()
    calls = final.choices[0].message.tool_calls
    assert calls
    assert (calls[0].id, calls[0].function.name) == ("call_1", "weather")
    assert calls[0].function.arguments == '{"city":"Oslo"}'
    assert final.choices[0].finish_reason == "tool_calls"


async def test_error_mid_stream_is_raised(url: str, service: FakeService) -> None:
    service.script = [
        Admit(),
        Delta("Hello"),
        Fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Too late.", "DEADLINE"),
    ]
    async with client(url) as openai_client:
        stream = await openai_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True
        )
        with pytest.raises(openai.APIError, match="Too late") as caught:
            async for _ in stream:
                pass
    assert caught.value.code == "timeout"


async def test_refusal_is_typed(url: str, service: FakeService) -> None:
    service.script = [
        Fail(grpc.StatusCode.INVALID_ARGUMENT, "Too hot.", "INVALID_FIELD", "sampling.temperature")
    ]
    async with client(url) as openai_client:
        with pytest.raises(openai.BadRequestError) as caught:
            await openai_client.chat.completions.create(model=MODEL, messages=MESSAGES)
    assert caught.value.param == "temperature"
    assert caught.value.request_id


async def test_models_are_listed(url: str) -> None:
    async with client(url) as openai_client:
        listed = [model.id async for model in openai_client.models.list()]
        retrieved = await openai_client.models.retrieve(MODEL)
    assert listed == [retrieved.id] == [MODEL]
    extra = retrieved.model_extra or {}
    assert extra["engine"] == "fake"
    assert extra["capabilities"]["unsupported_parameters"][0] == "bad_words"


async def test_leaving_a_stream_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), *(Delta(" word") for _ in range(10)), Hold()]
    async with client(url) as openai_client:
        stream = await openai_client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True
        )
        async for _ in stream:
            break
        await stream.close()
        await service.cancelled()


def assistant(content: str | None, **fields: Any) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_ASSISTANT,
        content=[] if content is None else [chat_pb2.ContentPart(text=content)],
        **fields,
    )


def call(arguments: str, name: str = "Weather") -> chat_pb2.ToolCall:
    return chat_pb2.ToolCall(
        id="call_1", function=chat_pb2.FunctionCall(name=name, arguments_json=arguments)
    )


class Weather(BaseModel):
    """The weather of a place, as a response format."""

    city: str


@pytest.mark.parametrize(
    "message",
    [
        assistant('{"city": "Rome"}'),
        assistant(""),
        assistant("", reasoning_content="So ..."),
        assistant('{"city": "Rome"}', reasoning_content="So ..."),
        assistant(None, tool_calls=[call('{"city": "Rome"}')]),
        assistant(None, tool_calls=[call('{"city": "Rome"}')], reasoning_content="So ..."),
        assistant('{"city": "Rome"}', tool_calls=[call('{"city": "Rome"}')]),
        assistant(None, refusal="No."),
    ],
)
async def test_message_that_was_returned_can_be_sent_back_as_it_is(
    url: str, service: FakeService, message: chat_pb2.ChatMessage
) -> None:
    """The message has the fields that `parse()` adds, and nulls for all others of the SDK."""
    has_calls = bool(message.tool_calls)
    reason = chat_pb2.FINISH_REASON_TOOL_CALLS if has_calls else chat_pb2.FINISH_REASON_STOP
    service.completion = chat_pb2.ChatCompletion(
        model=MODEL, choices=[chat_pb2.Choice(message=message, finish_reason=reason)]
    )
    is_json = any(part.text.startswith("{") for part in message.content)
    async with client(url) as openai_client:
        completions = openai_client.chat.completions
        parsed = await completions.parse(
            model=MODEL,
            messages=MESSAGES,
            tools=[openai.pydantic_function_tool(Weather)],
            **({"response_format": Weather} if is_json else {}),  # type: ignore[arg-type]
        )
        returned = parsed.choices[0].message
        if is_json:
            assert returned.parsed == Weather(city="Rome")
        if has_calls:
            assert returned.tool_calls
            assert returned.tool_calls[0].function.parsed_arguments == Weather(city="Rome")
        # The SDK's serializer warns about the values that `parse()` has put into the message.
        python = returned.model_dump(warnings=False)
        json_form = returned.model_dump(mode="json", warnings=False)
        for sent in (python, json_form):
            await completions.create(model=MODEL, messages=[*MESSAGES, sent])  # type: ignore[list-item]
            got = service.calls[-1].params.messages[1]
            text = "".join(part.text for part in got.content)
            assert text == "".join(part.text for part in message.content)
            for name in ("role", "reasoning_content", "refusal", "tool_calls"):
                assert getattr(got, name) == getattr(message, name)
