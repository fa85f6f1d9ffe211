"""The real Anthropic client, plain and with its stream helper."""

import json
from typing import Any

import anthropic
import grpc
import pytest
from anthropic.types import MessageParam, ToolParam
from pydantic import BaseModel

from chatrpc.v1 import chat_pb2
from tests.fakes.chat_service import (
    MODEL,
    PROMPT_TOKENS,
    Admit,
    Delta,
    Fail,
    FakeService,
    Finish,
    Hold,
    Step,
    reasoning,
    tool_call,
)

MESSAGES: list[MessageParam] = [{"role": "user", "content": "Hi"}]
TOOL: ToolParam = {
    "name": "weather",
    "description": "Report the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def client(url: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0)


THINKING_AND_CALLS: list[Step] = [
    Admit(),
    reasoning("Hm"),
    reasoning("m."),
    Delta("Let me see."),
    tool_call("", "call_1", "weather"),
    tool_call('{"city":'),
    tool_call('"Oslo"}'),
    tool_call('{"city": "Bergen"}', "call_2", "weather", 1),
    Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
]


async def test_message_is_created(url: str) -> None:
    async with client(url) as claude:
        raw = await claude.messages.with_raw_response.create(
            model=MODEL, max_tokens=16, messages=MESSAGES
        )
    message = await raw.parse()
    assert [block.to_dict() for block in message.content] == [
        {"type": "text", "text": "Hello world", "citations": None}
    ]
    assert message.id.startswith("msg_")
    assert message.model == MODEL
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens == PROMPT_TOKENS
    assert message.usage.output_tokens == 2
    assert raw.headers["request-id"] == raw.headers["x-request-id"]


async def test_streamed_message_is_the_created_one(url: str, service: FakeService) -> None:
    service.script = [*THINKING_AND_CALLS]
    async with client(url) as claude:
        created = await claude.messages.create(
            model=MODEL, max_tokens=16, messages=MESSAGES, tools=[TOOL]
        )
        async with claude.messages.stream(
            model=MODEL, max_tokens=16, messages=MESSAGES, tools=[TOOL]
        ) as stream:
            streamed = await stream.get_final_message()
    kinds = [block.type for block in created.content]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    inputs = [block.input for block in created.content if block.type == "tool_use"]
    assert inputs == [{"city": "Oslo"}, {"city": "Bergen"}]
    assert created.stop_reason == "tool_use"
    for name in ("stop_reason", "stop_sequence", "usage"):
        assert getattr(streamed, name) == getattr(created, name), name
    assert [block.to_dict(mode="json") | {"parsed_output": None} for block in streamed.content] == [
        block.to_dict(mode="json") | {"parsed_output": None} for block in created.content
    ]


async def test_events_of_a_stream_are_in_order(url: str, service: FakeService) -> None:
    service.script = [*THINKING_AND_CALLS]
    async with client(url) as claude:
        stream = await claude.messages.create(
            model=MODEL, max_tokens=16, messages=MESSAGES, tools=[TOOL], stream=True
        )
        events = [event async for event in stream]
    starts = [event.index for event in events if event.type == "content_block_start"]
    stops = [event.index for event in events if event.type == "content_block_stop"]
    assert starts == stops == [0, 1, 2, 3]
    open_index = -1
    for event in events[1:-2]:
        assert event.type.startswith("content_block_")
        index = getattr(event, "index")  # noqa: B009  # the type of the event is not narrowed
        if event.type == "content_block_start":
            assert open_index < index
            open_index = index
        assert index == open_index
    assert [event.type for event in (events[0], *events[-2:])] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]


async def test_messages_that_were_returned_can_be_sent_back(url: str, service: FakeService) -> None:
    service.script = [*THINKING_AND_CALLS]
    async with client(url) as claude:
        first = await claude.messages.create(
            model=MODEL, max_tokens=16, messages=MESSAGES, tools=[TOOL]
        )
        results: list[Any] = [
            {"type": "tool_result", "tool_use_id": block.id, "content": f"Rain {i}."}
            for i, block in enumerate(each for each in first.content if each.type == "tool_use")
        ]
        await claude.messages.create(
            model=MODEL,
            max_tokens=16,
            system="Be brief.",
            messages=[
                *MESSAGES,
                {"role": "assistant", "content": first.content},
                {"role": "user", "content": [*results, {"type": "text", "text": "And?"}]},
            ],
            tools=[TOOL],
        )
    sent = service.calls[-1].params.messages
    roles = [chat_pb2.Role.Name(message.role).removeprefix("ROLE_") for message in sent]
    assert roles == ["SYSTEM", "USER", "ASSISTANT", "TOOL", "TOOL", "USER"]
    assert sent[2].reasoning_content == "Hmm."
    assert [call.function.arguments_json for call in sent[2].tool_calls] == [
        '{"city":"Oslo"}',
        '{"city":"Bergen"}',
    ]
    assert [message.tool_call_id for message in sent[3:5]] == ["call_1", "call_2"]
    assert [message.content[0].text for message in sent[3:]] == ["Rain 0.", "Rain 1.", "And?"]


async def test_omitted_thinking_is_restored_from_its_signature(
    url: str, service: FakeService
) -> None:
    service.script = [*THINKING_AND_CALLS]
    async with (
        client(url) as claude,
        claude.messages.stream(
            model=MODEL,
            max_tokens=4096,
            messages=MESSAGES,
            thinking={"type": "adaptive", "display": "omitted"},
        ) as stream,
    ):
        first = await stream.get_final_message()
        block = first.content[0]
        assert block.type == "thinking"
        assert block.thinking == ""
        await claude.messages.create(
            model=MODEL,
            max_tokens=16,
            messages=[*MESSAGES, {"role": "assistant", "content": [block]}, *MESSAGES],
        )
    assert service.calls[-1].params.messages[1].reasoning_content == "Hmm."


async def test_changed_thinking_is_rejected(url: str, service: FakeService) -> None:
    service.script = [*THINKING_AND_CALLS]
    async with client(url) as claude:
        first = await claude.messages.create(model=MODEL, max_tokens=16, messages=MESSAGES)
        block: Any = first.content[0].to_dict() | {"thinking": "Something else."}
        with pytest.raises(
            anthropic.BadRequestError, match=r"messages\[1\].content\[0\].signature"
        ):
            await claude.messages.create(
                model=MODEL,
                max_tokens=16,
                messages=[*MESSAGES, {"role": "assistant", "content": [block]}, *MESSAGES],
            )


async def test_tool_runner_sends_the_history_without_a_thread(
    url: str, service: FakeService
) -> None:
    """The runner first asks the server to store the conversation, which is not supported."""

    async def weather(city: str) -> str:
        """Report the weather."""
        return f"Rain in {city}."

    service.turns = [[*THINKING_AND_CALLS]]
    async with client(url) as claude:
        runner = claude.beta.messages.tool_runner(
            model=MODEL,
            max_tokens=16,
            messages=[{"role": "user", "content": "Hi"}],
            tools=[anthropic.beta_async_tool(weather)],
        )
        final = await runner.until_done()
    assert final.content[0].to_dict()["text"] == "Hello world"
    sent = service.calls[-1].params.messages
    assert [message.content[0].text for message in sent[2:]] == ["Rain in Oslo.", "Rain in Bergen."]
    assert len(service.calls) == 2


async def test_parsed_output_has_the_schema_of_the_class(url: str, service: FakeService) -> None:
    class Weather(BaseModel):
        city: str

    service.script = [Admit(), Delta('{"city": "Oslo"}'), Finish()]
    async with client(url) as claude:
        message = await claude.messages.parse(
            model=MODEL, max_tokens=16, messages=MESSAGES, output_format=Weather
        )
    assert message.parsed_output == Weather(city="Oslo")
    sent = service.calls[-1].params.response_format.json_schema
    assert json.loads(sent.schema_json)["properties"]["city"]["type"] == "string"


@pytest.mark.parametrize(
    ("finish", "max_tokens", "expected"),
    [
        (Finish(matched_stop=chat_pb2.MatchedStop(text="END")), 16, ("stop_sequence", "END")),
        (Finish(chat_pb2.FINISH_REASON_LENGTH), 1, ("max_tokens", None)),
        (
            Finish(chat_pb2.FINISH_REASON_LENGTH),
            16,
            ("model_context_window_exceeded", None),
        ),
        (Finish(chat_pb2.FINISH_REASON_CONTENT_FILTER), 16, ("refusal", None)),
    ],
)
async def test_stop_reason_is_that_of_the_finish_reason(
    url: str, service: FakeService, finish: Finish, max_tokens: int, expected: tuple[str, Any]
) -> None:
    service.script = [Admit(), Delta("a"), finish]
    async with client(url) as claude:
        message = await claude.messages.create(
            model=MODEL, max_tokens=max_tokens, messages=MESSAGES, stop_sequences=["END"]
        )
        async with claude.messages.stream(
            model=MODEL, max_tokens=max_tokens, messages=MESSAGES, stop_sequences=["END"]
        ) as stream:
            streamed = await stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == expected
    assert (streamed.stop_reason, streamed.stop_sequence) == expected


async def test_tokens_of_a_conversation_are_counted(url: str, service: FakeService) -> None:
    async with client(url) as claude:
        counted = await claude.messages.count_tokens(
            model=MODEL, messages=MESSAGES, system="Be brief.", tools=[TOOL]
        )
    request = service.calls[-1].params
    assert counted.input_tokens > 0
    assert [tool.function.name for tool in request.conversation.tools] == ["weather"]
    assert len(request.conversation.messages) == 2


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Fail(grpc.StatusCode.INVALID_ARGUMENT), anthropic.BadRequestError),
        (
            Fail(grpc.StatusCode.NOT_FOUND, "No such model.", "MODEL_NOT_FOUND"),
            anthropic.NotFoundError,
        ),
        (Fail(grpc.StatusCode.RESOURCE_EXHAUSTED), anthropic.RateLimitError),
        (Fail(grpc.StatusCode.INTERNAL), anthropic.InternalServerError),
    ],
)
async def test_failed_call_is_the_error_of_its_status(
    url: str, service: FakeService, failure: Fail, error: type[anthropic.APIStatusError]
) -> None:
    service.script = [failure]
    async with client(url) as claude:
        with pytest.raises(error) as caught:
            await claude.messages.create(model=MODEL, max_tokens=16, messages=MESSAGES)
    body: Any = caught.value.body
    assert body["type"] == "error"
    assert body["request_id"] == caught.value.request_id


async def test_field_of_the_service_has_the_path_of_the_client(
    url: str, service: FakeService
) -> None:
    field = "messages[2].tool_calls[0].function.arguments_json"
    service.script = [
        Fail(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is wrong.", "INVALID_FIELD", field)
    ]
    call: Any = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
    async with client(url) as claude:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await claude.messages.create(
                model=MODEL,
                max_tokens=16,
                system="Be brief.",
                messages=[
                    *MESSAGES,
                    {"role": "assistant", "content": [{"type": "text", "text": "See"}, call]},
                ],
            )
    body: Any = caught.value.body
    assert body["error"]["message"] == "messages[1].content[1].input is wrong."


async def test_failure_in_a_stream_is_an_error_event(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("a"), Fail(grpc.StatusCode.INTERNAL)]
    async with client(url) as claude:
        stream = await claude.messages.create(
            model=MODEL, max_tokens=16, messages=MESSAGES, stream=True
        )
        with pytest.raises(anthropic.APIStatusError) as caught:
            async for _ in stream:
                pass
    body: Any = caught.value.body
    assert body["error"]["type"] == "api_error"


async def test_closed_stream_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("a"), Hold()]
    async with client(url) as claude:
        stream = await claude.messages.create(
            model=MODEL, max_tokens=16, messages=MESSAGES, stream=True
        )
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
    await service.cancelled()
