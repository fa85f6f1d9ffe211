"""The real OpenAI client with the Responses API, plain, with its stream helper and with parsing."""

import json
from typing import Any

import grpc
import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

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

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Report the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
PATCH: Any = {"type": "custom", "name": "patch", "description": "Apply a patch."}


def client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


ALL_ITEMS: list[Step] = [
    Admit(),
    reasoning("Hm"),
    reasoning("m."),
    Delta("Let me "),
    Delta("see."),
    tool_call("", "call_1", "weather"),
    tool_call('{"city":'),
    tool_call('"Oslo"}'),
    tool_call('{"input": "a\\', "call_2", "patch", 1),
    tool_call("nb\\ud83d", index=1),
    tool_call('\\ude00"}', index=1),
    Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
]


async def events_of(url: str, **body: Any) -> list[dict[str, Any]]:
    """Return the events of a stream. Check their names, their types and their numbers."""
    async with httpx.AsyncClient(base_url=url, timeout=10) as http:
        response = await http.post("/v1/responses", json={"model": MODEL, "stream": True} | body)
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.rstrip("\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def test_response_is_created(url: str, service: FakeService) -> None:
    async with client(url) as ai:
        raw = await ai.responses.with_raw_response.create(
            model=MODEL, input="Hi", instructions="Be brief.", max_output_tokens=16
        )
    response = raw.parse()
    assert response.output_text == "Hello world"
    assert response.id.startswith("resp_")
    assert (response.model, response.status, response.error) == (MODEL, "completed", None)
    assert response.usage is not None
    assert response.usage.input_tokens == PROMPT_TOKENS
    assert response.usage.output_tokens == 2
    assert response.usage.total_tokens == PROMPT_TOKENS + 2
    assert response.instructions == "Be brief."
    assert response.completed_at is not None
    Response.model_validate_json(raw.text)
    params = service.calls[0].params
    assert [message.role for message in params.messages] == [
        chat_pb2.ROLE_DEVELOPER,
        chat_pb2.ROLE_USER,
    ]
    assert params.sampling.max_completion_tokens == 16


async def test_streamed_response_is_the_created_one(url: str, service: FakeService) -> None:
    service.script = [*ALL_ITEMS]
    async with client(url) as ai:
        created = await ai.responses.create(model=MODEL, input="Hi", tools=[TOOL, PATCH])
        async with ai.responses.stream(model=MODEL, input="Hi", tools=[TOOL, PATCH]) as stream:
            streamed = await stream.get_final_response()
    assert [item.type for item in created.output] == [
        "reasoning",
        "message",
        "function_call",
        "custom_tool_call",
    ]
    call, patch = created.output[2:]
    assert call.type == "function_call"
    assert json.loads(call.arguments) == {"city": "Oslo"}
    assert patch.type == "custom_tool_call"
    assert patch.input == "a\nb\N{GRINNING FACE}"
    for name in ("status", "tools", "tool_choice", "text", "metadata"):
        assert getattr(streamed, name) == getattr(created, name), name
    assert [_without_ids(item) for item in streamed.output] == [
        _without_ids(item) for item in created.output
    ]


def _without_ids(item: Any) -> dict[str, Any]:
    fields: dict[str, Any] = item.to_dict(mode="json")
    fields.pop("id")
    fields.pop("parsed_arguments", None)
    for part in fields.get("content") or ():
        part.pop("parsed", None)
    return fields


async def test_events_of_a_stream_are_in_order(url: str, service: FakeService) -> None:
    service.script = [*ALL_ITEMS]
    events = await events_of(url, input="Hi", tools=[TOOL, PATCH])
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.delta",
        "custom_tool_call_input.done",
        "output_item.done",
        "completed",
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done
    assert events[0]["response"]["output"] == []


async def test_reasoning_is_a_summary_if_one_is_requested(url: str, service: FakeService) -> None:
    service.script = [Admit(), reasoning("Hm"), reasoning("m."), Delta("Yes."), Finish()]
    events = await events_of(
        url,
        input="Hi",
        reasoning={"effort": "low", "summary": "auto"},
        include=["reasoning.encrypted_content"],
    )
    assert [event["type"].removeprefix("response.") for event in events[2:9]] == [
        "output_item.added",
        "reasoning_summary_part.added",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.delta",
        "reasoning_summary_text.done",
        "reasoning_summary_part.done",
        "output_item.done",
    ]
    item = events[8]["item"]
    assert item["summary"] == [{"type": "summary_text", "text": "Hmm."}]
    assert service.calls[0].params.reasoning_effort == chat_pb2.REASONING_EFFORT_LOW
    item["summary"] = []
    async with client(url) as ai:
        await ai.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": "Hi"}, *events[-1]["response"]["output"]],
        )
    message = service.calls[1].params.messages[1]
    assert message.reasoning_content == "Hmm."
    assert [part.text for part in message.content] == ["Yes."]


async def test_output_can_be_sent_back_with_results(url: str, service: FakeService) -> None:
    service.script = [*ALL_ITEMS]
    conversation: list[Any] = [{"role": "user", "content": "Hi"}]
    async with client(url) as ai:
        first = await ai.responses.create(model=MODEL, input=conversation, tools=[TOOL, PATCH])
        conversation += first.output
        conversation += [
            {"type": "function_call_output", "call_id": "call_1", "output": "Rain"},
            {
                "type": "custom_tool_call_output",
                "call_id": "call_2",
                "output": [{"type": "input_text", "text": "Done"}],
            },
        ]
        await ai.responses.create(model=MODEL, input=conversation, tools=[TOOL, PATCH])
    user, turn, *results = service.calls[1].params.messages
    assert user.content[0].text == "Hi"
    assert turn.reasoning_content == "Hmm."
    assert [part.text for part in turn.content] == ["Let me see."]
    assert [call.function.arguments_json for call in turn.tool_calls] == [
        '{"city":"Oslo"}',
        '{"input":"a\\nb\N{GRINNING FACE}"}',
    ]
    assert [(m.role, m.tool_call_id, m.content[0].text) for m in results] == [
        (chat_pb2.ROLE_TOOL, "call_1", "Rain"),
        (chat_pb2.ROLE_TOOL, "call_2", "Done"),
    ]


class City(BaseModel):
    name: str


async def test_parse_returns_a_value(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta('{"name": '), Delta('"Oslo"}'), Finish()]
    async with client(url) as ai:
        parsed = await ai.responses.parse(model=MODEL, input="Where?", text_format=City)
        async with ai.responses.stream(model=MODEL, input="Where?", text_format=City) as stream:
            streamed = await stream.get_final_response()
    assert parsed.output_parsed == streamed.output_parsed == City(name="Oslo")
    wanted = service.calls[0].params.response_format.json_schema
    assert wanted.name == "City"
    assert wanted.strict
    assert json.loads(wanted.schema_json)["required"] == ["name"]


@pytest.mark.parametrize(
    ("reason", "details"),
    [
        (chat_pb2.FINISH_REASON_LENGTH, "max_output_tokens"),
        (chat_pb2.FINISH_REASON_CONTENT_FILTER, "content_filter"),
    ],
)
async def test_output_that_is_cut_is_incomplete(
    url: str, service: FakeService, reason: chat_pb2.FinishReason.ValueType, details: str
) -> None:
    service.script = [Admit(), Delta("Hel"), Finish(reason)]
    async with client(url) as ai:
        created = await ai.responses.create(model=MODEL, input="Hi")
    last = (await events_of(url, input="Hi"))[-1]
    assert last["type"] == "response.incomplete"
    for response in (created, Response.model_validate(last["response"])):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == details
        message = response.output[0]
        assert message.type == "message"
        assert message.status == "incomplete"
        assert response.usage is not None


async def test_empty_output_is_an_empty_message(url: str, service: FakeService) -> None:
    service.script = [Admit(), Finish()]
    async with client(url) as ai:
        created = await ai.responses.create(model=MODEL, input="Hi")
        async with ai.responses.stream(model=MODEL, input="Hi") as stream:
            streamed = await stream.get_final_response()
    assert [item.type for item in created.output] == ["message"]
    assert created.output_text == streamed.output_text == ""


async def test_log_probabilities_are_those_of_the_text(url: str, service: FakeService) -> None:
    def token(text: str) -> chat_pb2.TokenLogprob:
        top = chat_pb2.TokenLogprob(token=text, token_bytes=text.encode(), logprob=-0.5)
        return chat_pb2.TokenLogprob(token=text, token_bytes=text.encode(), logprob=-0.5, top=[top])

    service.script = [
        Admit(),
        Delta(logprobs=(token("Hm"),), delta=chat_pb2.Delta(reasoning_content="Hm")),
        Delta("", logprobs=(token("A"),)),
        Delta("AB", logprobs=(token("B"),)),
        Finish(),
    ]
    include = ["message.output_text.logprobs"]
    events = await events_of(url, input="Hi", include=include, top_logprobs=1)
    [delta] = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [each["token"] for each in delta["logprobs"]] == ["A", "B"]
    part = events[-1]["response"]["output"][1]["content"][0]
    assert part["logprobs"] == delta["logprobs"]
    params = service.calls[0].params
    assert params.logprobs
    assert params.top_logprobs == 1


async def test_stream_that_fails_ends_with_a_failed_response(
    url: str, service: FakeService
) -> None:
    service.script = [
        Admit(),
        Delta("Hel"),
        Fail(grpc.StatusCode.INTERNAL, "It broke.", "INTERNAL"),
    ]
    events = await events_of(url, input="Hi")
    assert [event["type"] for event in events[-2:]] == [
        "response.output_text.delta",
        "response.failed",
    ]
    response = Response.model_validate(events[-1]["response"])
    assert response.status == "failed"
    assert response.error is not None
    assert response.error.code == "server_error"
    assert response.output_text == "Hel"


async def test_stream_that_fails_before_its_first_token_has_an_error(
    pinging_url: str, service: FakeService
) -> None:
    service.script = [Admit(), Hold(), Fail(grpc.StatusCode.INTERNAL, "It broke.", "INTERNAL")]
    async with (
        httpx.AsyncClient(base_url=pinging_url, timeout=10) as http,
        http.stream(
            "POST", "/v1/responses", json={"model": MODEL, "input": "Hi", "stream": True}
        ) as response,
    ):
        text = ""
        async for chunk in response.aiter_text():
            text += chunk
            service.release()
    [event] = [block for block in text.split("\n\n") if block.startswith("event: ")]
    name, data = event.split("\n")
    assert name == "event: error"
    error = EVENT.validate_json(data.removeprefix("data: "))
    assert error.code == "server_error"


async def test_rejected_stream_has_a_status(url: str, service: FakeService) -> None:
    service.num_rejections = 1
    service.rejection = Fail(
        grpc.StatusCode.INVALID_ARGUMENT,
        "messages[0].content is too long",
        "CONTEXT_LENGTH_EXCEEDED",
        "messages[0].content",
    )
    async with client(url) as ai:
        with pytest.raises(openai.BadRequestError) as caught:
            await ai.responses.create(model=MODEL, input="Hi", stream=True)
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.param == "input"


async def test_client_that_leaves_cancels_the_call(url: str, service: FakeService) -> None:
    service.script = [Admit(), Delta("Hel"), Hold()]
    async with client(url) as ai:
        stream = await ai.responses.create(model=MODEL, input="Hi", stream=True)
        async for event in stream:
            if event.type == "response.output_text.delta":
                break
        await stream.close()
    await service.cancelled()


async def test_input_tokens_are_counted(url: str, service: FakeService) -> None:
    async with client(url) as ai:
        counted = await ai.responses.input_tokens.count(
            model=MODEL, input="Hi", instructions="Be brief.", tools=[TOOL]
        )
    assert counted.object == "response.input_tokens"
    assert counted.input_tokens > 0
    conversation = service.calls[0].params.conversation
    assert len(conversation.messages) == 2
    assert conversation.tools[0].function.name == "weather"


async def test_tool_of_a_namespace_is_called_and_its_result_sent_back(
    url: str, service: FakeService
) -> None:
    namespace: Any = {
        "type": "namespace",
        "name": "crm",
        "description": "Customers.",
        "tools": [TOOL, PATCH],
    }
    service.script = [
        Admit(),
        tool_call("{}", "call_1", "crm__weather"),
        tool_call('{"input": "a"}', "call_2", "crm__patch", 1),
        tool_call("{}", "call_3", "weather", 2),
        Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
    ]
    async with client(url) as openai_client:
        first = await openai_client.responses.create(
            model=MODEL, input="Hi", tools=[TOOL, namespace]
        )
        calls: list[Any] = list(first.output)
        assert [(call.type, call.namespace, call.name) for call in calls] == [
            ("function_call", "crm", "weather"),
            ("custom_tool_call", "crm", "patch"),
            ("function_call", None, "weather"),
        ]
        await openai_client.responses.create(
            model=MODEL, input=[*(call.to_dict() for call in calls)], tools=[TOOL, namespace]
        )
    sent = service.calls[-1].params
    names = [call.function.name for call in sent.messages[0].tool_calls]
    assert names == ["crm__weather", "crm__patch", "weather"]
    assert [tool.function.name for tool in sent.tools] == ["weather", "crm__weather", "crm__patch"]
    assert sent.tools[1].function.description == "Customers.\n\nReport the weather."


async def test_tool_of_a_namespace_has_the_path_of_the_client(
    url: str, service: FakeService
) -> None:
    field = "tools[2].function.name"
    service.script = [
        Fail(grpc.StatusCode.INVALID_ARGUMENT, f"{field} is too long.", "INVALID_FIELD", field)
    ]
    namespace: Any = {"type": "namespace", "name": "crm", "description": "", "tools": [TOOL, PATCH]}
    async with client(url) as openai_client:
        with pytest.raises(openai.BadRequestError) as caught:
            await openai_client.responses.create(model=MODEL, input="Hi", tools=[TOOL, namespace])
    assert caught.value.param == "tools[1].tools[1].name"
