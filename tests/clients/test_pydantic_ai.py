"""`pydantic-ai` over chat completions, OpenAI's Responses API and Anthropic's Messages API."""

from typing import Any

import pytest
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, PromptedOutput, Tool, ToolOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from chatrpc.v1 import chat_pb2
from tests.clients.scripts import CALL, CITY, RAIN, TOO_HOT, City, weather
from tests.fakes.chat_service import MODEL, FakeService, tool_call

pytestmark = pytest.mark.clients


def chat(url: str) -> OpenAIChatModel:
    return OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="none"))


def responses(url: str) -> OpenAIResponsesModel:
    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    return OpenAIResponsesModel(MODEL, provider=provider)


def messages(url: str) -> AnthropicModel:
    return AnthropicModel(
        MODEL,
        provider=AnthropicProvider(base_url=url, api_key="none"),
        # By default it depends on the name of the model.
        profile={"supports_json_schema_output": True},
    )


@pytest.fixture(params=[chat, responses, messages])
def model(request: pytest.FixtureRequest, url: str) -> Any:
    return request.param(url)


async def test_run_calls_a_tool_and_returns_the_output(model: Any, service: FakeService) -> None:
    service.turns = [CALL, RAIN]
    agent = Agent(model, instructions="Be brief.", tools=[weather])
    result = await agent.run("Weather in Oslo?")
    assert result.output == "It rains in Oslo."
    assert result.usage.requests == 2
    sent = service.calls[-1].params.messages
    roles = [chat_pb2.Role.Name(message.role) for message in sent]
    assert roles[0] in {"ROLE_SYSTEM", "ROLE_DEVELOPER"}
    assert roles[1:] == ["ROLE_USER", "ROLE_ASSISTANT", "ROLE_TOOL"]
    assert sent[2].reasoning_content == "The user asks for the weather."
    assert sent[3].content[0].text == "Rain in Oslo."


async def test_streamed_run_calls_a_tool_and_streams_the_output(
    model: Any, service: FakeService
) -> None:
    service.turns = [CALL, RAIN]
    agent = Agent(model, tools=[weather])
    async with agent.run_stream("Weather in Oslo?") as result:
        deltas = [text async for text in result.stream_text(delta=True, debounce_by=None)]
    assert "".join(deltas) == "It rains in Oslo."
    assert result.usage.output_tokens > 2


@pytest.mark.parametrize("output", [NativeOutput, PromptedOutput])
async def test_structured_output_is_parsed(model: Any, service: FakeService, output: Any) -> None:
    service.script = CITY
    result = await Agent(model, output_type=output(City)).run("Where?")
    assert result.output == City(city="Oslo")


async def test_output_of_a_tool_is_parsed(model: Any, service: FakeService) -> None:
    service.script = CALL
    result = await Agent(model, output_type=ToolOutput(City, name="weather")).run("Where?")
    assert result.output == City(city="Oslo")


async def test_wrong_output_is_sent_back_with_its_error(model: Any, service: FakeService) -> None:
    wrong = [tool_call('{"town": 1}', "call_1", "weather"), *CALL[-1:]]
    service.turns = [wrong, CALL]
    result = await Agent(model, output_type=ToolOutput(City, name="weather"), retries=1).run("?")
    assert result.output == City(city="Oslo")
    sent = service.calls[-1].params.messages[-1]
    assert "Field required" in "".join(part.text for part in sent.content)


async def test_rejected_request_is_an_error_of_its_status(model: Any, service: FakeService) -> None:
    service.script = [TOO_HOT]
    with pytest.raises(ModelHTTPError, match="Too hot") as caught:
        await Agent(model).run("Hi")
    assert caught.value.status_code == 400


async def test_settings_of_the_model_reach_the_service(model: Any, service: FakeService) -> None:
    settings = {
        "max_tokens": 16,
        "temperature": 0.5,
        "top_p": 0.5,
        "stop_sequences": ["END"],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "timeout": 60,
        "seed": 1,
    }
    await Agent(model, tools=[Tool(weather)], model_settings=settings).run("Hi")
    sent = service.calls[-1].params
    assert sent.sampling.max_completion_tokens == 16
    if not isinstance(model, OpenAIResponsesModel):  # it has no stop sequences
        assert list(sent.sampling.stop) == ["END"]
    assert sent.HasField("parallel_tool_calls")
