"""`openai-agents` over chat completions and over OpenAI's Responses API."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

from chatrpc.v1 import chat_pb2
from tests.clients.scripts import CALL, CITY, RAIN, City, weather
from tests.fakes.chat_service import MODEL, FakeService, Finish, reasoning, tool_call

pytestmark = pytest.mark.clients

set_tracing_disabled(True)  # traces would be sent to OpenAI


@pytest.fixture(
    params=[OpenAIChatCompletionsModel, OpenAIResponsesModel], ids=["chat", "responses"]
)
async def model(request: pytest.FixtureRequest, url: str) -> AsyncIterator[Any]:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield request.param(model=MODEL, openai_client=client)


def agent(model: Any, **options: Any) -> Agent:
    return Agent(name="Forecaster", instructions="Be brief.", model=model, **options)


async def test_run_calls_a_tool_and_returns_the_output(model: Any, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    result = await Runner.run(agent(model, tools=[function_tool(weather)]), "Weather in Oslo?")
    assert result.final_output == "It rains in Oslo."
    assert result.context_wrapper.usage.requests == 2
    sent = service.calls[-1].params
    roles = [chat_pb2.Role.Name(message.role) for message in sent.messages]
    assert roles[0] in {"ROLE_SYSTEM", "ROLE_DEVELOPER"}
    assert roles[1:] == ["ROLE_USER", "ROLE_ASSISTANT", "ROLE_TOOL"]
    assert sent.messages[3].content[0].text == "Rain in Oslo."


async def test_streamed_run_calls_a_tool_and_returns_the_output(
    model: Any, service: FakeService
) -> None:
    service.turns = [CALL, RAIN]
    result = Runner.run_streamed(
        agent(
            model,
            tools=[function_tool(weather)],
            model_settings=ModelSettings(include_usage=True),
        ),
        "Weather in Oslo?",
    )
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == result.final_output == "It rains in Oslo."
    assert result.context_wrapper.usage.output_tokens == 7


async def test_parallel_tool_calls_have_their_results(model: Any, service: FakeService) -> None:
    service.turns = [
        [
            tool_call("", "call_1", "weather"),
            tool_call('{"city": "Oslo"}'),
            tool_call('{"city": "Bergen"}', "call_2", "weather", 1),
            Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
        ],
        RAIN,
    ]
    await Runner.run(agent(model, tools=[function_tool(weather)]), "Weather?")
    sent = service.calls[-1].params.messages
    assert [message.tool_call_id for message in sent[3:]] == ["call_1", "call_2"]
    assert [message.content[0].text for message in sent[3:]] == ["Rain in Oslo.", "Rain in Bergen."]


async def test_output_of_a_type_is_parsed(model: Any, service: FakeService) -> None:
    service.script = [reasoning("Easy."), *CITY[1:]]
    result = await Runner.run(agent(model, output_type=City), "Where?")
    assert result.final_output == City(city="Oslo")
    assert service.calls[-1].params.response_format.json_schema.strict


async def test_settings_of_the_model_reach_the_service(model: Any, service: FakeService) -> None:
    settings = ModelSettings(
        temperature=0.5,
        top_p=0.5,
        max_tokens=16,
        tool_choice="required",
        parallel_tool_calls=False,
        verbosity="low",
        reasoning={"effort": "low"},
        metadata={"a": "b"},
        store=False,
        prompt_cache_retention="in_memory",
        extra_body={"top_k": 3},
    )
    await Runner.run(agent(model, tools=[function_tool(weather)], model_settings=settings), "Hi")
    sent = service.calls[-1].params
    assert sent.sampling.top_k == 3
    assert sent.sampling.max_completion_tokens == 16
    assert sent.tool_choice.mode == chat_pb2.ToolChoice.MODE_REQUIRED
    assert sent.reasoning_effort == chat_pb2.REASONING_EFFORT_LOW


async def test_agent_hands_off_to_another(model: Any, service: FakeService) -> None:
    service.turns = [
        [
            tool_call("{}", "call_1", "transfer_to_forecaster"),
            Finish(chat_pb2.FINISH_REASON_TOOL_CALLS),
        ],
        RAIN,
    ]
    forecaster = agent(model)
    first = Agent(
        name="First",
        handoffs=[forecaster],
        model=model,
    )
    result = await Runner.run(first, "Weather?")
    assert result.last_agent is forecaster
    assert result.final_output == "It rains in Oslo."
