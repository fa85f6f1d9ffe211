"""Tool calls and reasoning over gRPC, in whole and streamed responses."""

import asyncio
import json
from typing import Any

import grpc
import jsonschema
import pytest

from chatrpc.v1 import chat_pb2
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.domain.model import ChatFormats, ReasoningFormat, ToolFormat
from service.text.grammars import CompiledGrammars
from service.text.tool_calls.syntax import SYNTAXES
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import RandomEngine, byte_grammars
from tests.fakes.tokenizer import EOS
from tests.service.rpc.structured import complete, rejected, serve, stream
from tests.support.grpc_server import Running

Choice = chat_pb2.ToolChoice
AUTO = Choice(mode=Choice.MODE_AUTO)
REQUIRED = Choice(mode=Choice.MODE_REQUIRED)
NONE = Choice(mode=Choice.MODE_NONE)

SET = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2, 3]}},
    "required": ["city"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {"get_weather": WEATHER, "now": {}}


def tool(name: str, schema: Any = None, strict: bool | None = None) -> chat_pb2.Tool:
    text = schema if isinstance(schema, str) else json.dumps(schema) if schema else ""
    return chat_pb2.Tool(
        function=chat_pb2.FunctionDefinition(
            name=name, description=f"About {name}", parameters_json_schema=text, strict=strict
        )
    )


TOOLS = [tool("get_weather", WEATHER), tool("now")]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def grammars() -> CompiledGrammars:
    return byte_grammars()


def check(calls: Any) -> None:
    assert [call.index for call in calls] == list(range(len(calls)))
    assert len({call.id for call in calls}) == len(calls)
    for call in calls:
        assert call.id.startswith("call_")
        arguments = json.loads(call.function.arguments_json)
        jsonschema.validate(arguments, {"type": "object", **SCHEMAS[call.function.name]})


def script_of(text: str) -> list[TokenOutput | Exception | asyncio.Event]:
    """Return the outputs of an engine that generates `text` and then ends."""
    return [
        *(TokenOutput((byte,)) for byte in text.encode()),
        TokenOutput((EOS,), FinishReason.STOP),
    ]


async def serve_text(running: Running, text: str, **formats: Any) -> Running:
    engine = FakeEngine()
    engine.script = script_of(text)
    return await serve(running, engine, byte_grammars(), ChatFormats(**formats))


@pytest.mark.parametrize("tool_format", ToolFormat)
@pytest.mark.parametrize("is_parallel", [None, False])
async def test_required_call_is_valid_in_every_format(
    running: Running, grammars: CompiledGrammars, tool_format: ToolFormat, is_parallel: bool | None
) -> None:
    await serve(running, RandomEngine(seed=3, max_tokens=8000), grammars, ChatFormats(tool_format))
    for _ in range(3):
        [choice] = (
            await complete(
                running, tools=TOOLS, tool_choice=REQUIRED, parallel_tool_calls=is_parallel
            )
        ).choices
        assert choice.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
        assert list(choice.message.content) == []
        assert len(choice.message.tool_calls) >= 1
        if is_parallel is False:
            assert len(choice.message.tool_calls) == 1
        check(choice.message.tool_calls)


@pytest.mark.parametrize("tool_format", ToolFormat)
async def test_named_call_is_of_that_function_and_ends_with_stop(
    running: Running, grammars: CompiledGrammars, tool_format: ToolFormat
) -> None:
    await serve(running, RandomEngine(seed=5), grammars, ChatFormats(tool_format))
    named = Choice(function_name="get_weather")
    [choice] = (await complete(running, tools=TOOLS, tool_choice=named)).choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    check(choice.message.tool_calls)


USER = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text="Hi")])


@pytest.mark.parametrize("tool_format", ToolFormat)
async def test_returned_call_is_accepted_in_the_next_request(
    running: Running, grammars: CompiledGrammars, tool_format: ToolFormat
) -> None:
    await serve(running, RandomEngine(seed=5), grammars, ChatFormats(tool_format))
    named = Choice(function_name="get_weather")
    [called] = (await complete(running, tools=TOOLS, tool_choice=named)).choices
    [call] = called.message.tool_calls
    result = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_TOOL,
        tool_call_id=call.id,
        content=[chat_pb2.ContentPart(text="21 degrees")],
    )
    await serve_text(running, "ok", tools=tool_format)
    await complete(running, messages=[USER, called.message, result])


@pytest.mark.parametrize(
    "text", ["", "<think>Hm", "[THINK]Hm", "<think>Hm</think>4", CALL, CALL[:-20]]
)
@pytest.mark.parametrize("reasoning", ReasoningFormat)
async def test_returned_message_is_accepted_in_the_next_request(
    running: Running, text: str, reasoning: ReasoningFormat
) -> None:
    """The texts include an empty one, and reasoning and a call that are cut off."""
    await serve_text(running, text, reasoning=reasoning)
    [choice] = (await complete(running, tools=TOOLS)).choices
    await complete(running, messages=[USER, choice.message, USER])


async def test_call_with_allowed_tools_is_of_one_of_them(
    running: Running, grammars: CompiledGrammars
) -> None:
    await serve(running, RandomEngine(seed=5), grammars)
    allowed = chat_pb2.AllowedTools(mode=Choice.MODE_REQUIRED, function_names=["now"])
    [choice] = (
        await complete(running, tools=TOOLS, tool_choice=Choice(allowed_tools=allowed))
    ).choices
    assert {call.function.name for call in choice.message.tool_calls} == {"now"}
    assert b"get_weather" not in bytes(running.engine.requests[0].prompt_token_ids)


async def test_strict_function_is_constrained_once_a_call_begins(
    running: Running, grammars: CompiledGrammars
) -> None:
    tools = [tool("get_weather", WEATHER, strict=True), tool("now")]
    await serve_text(running, f"Wait.\n{CALL}")
    [choice] = (await complete(running, tools=tools)).choices
    check(choice.message.tool_calls)
    constraint = running.engine.requests[0].constraint
    assert constraint is not None
    matcher = constraint.matcher()
    for byte in b'Some text <tool_call>\n{"name": "get_weather", "arguments": {"':
        assert matcher.allowed_tokens()[byte // 8] >> byte % 8 & 1
        matcher.advance(byte)
    assert bytes(matcher.forced_tokens()) == b'city"'


async def test_unconstrained_calls_are_parsed(running: Running) -> None:
    await serve_text(running, f"Wait.\n{CALL}\n{CALL}")
    completion = await complete(running, tools=TOOLS)
    [choice] = completion.choices
    assert running.engine.requests[0].constraint is None
    assert choice.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert choice.message.content[0].text == "Wait."
    assert len(choice.message.tool_calls) == 2
    check(choice.message.tool_calls)


async def test_unconstrained_calls_are_parsed_in_a_stream(running: Running) -> None:
    await serve_text(running, f"Wait.\n{CALL}\n{CALL}")
    chunks = await stream(running, tools=TOOLS)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content for delta in deltas) == "Wait."
    pieces = [call for delta in deltas for call in delta.tool_calls]
    assert len(pieces) > 10
    opening = [piece for piece in pieces if piece.id]
    assert [(piece.index, piece.function.name) for piece in opening] == [
        (0, "get_weather"),
        (1, "get_weather"),
    ]
    for index in (0, 1):
        assert pieces[[piece.index for piece in pieces].index(index)].id
        arguments = "".join(p.function.arguments_json for p in pieces if p.index == index)
        assert json.loads(arguments) == {"city": "Rome"}
    assert all(not piece.function.name for piece in pieces if not piece.id)
    assert chunks[-1].choices[0].finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS


async def test_generation_without_parallel_calls_ends_after_one_call(running: Running) -> None:
    await serve_text(running, f"{CALL}\n{CALL}")
    completion = await complete(running, tools=TOOLS, parallel_tool_calls=False)
    [choice] = completion.choices
    assert len(choice.message.tool_calls) == 1
    assert choice.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert completion.usage.completion_tokens < len(CALL)
    assert running.engine.num_running == 0


async def test_generation_of_required_calls_ends_before_a_repeated_call(running: Running) -> None:
    """The engine ignores its grammar, and would not end by itself."""
    other = CALL.replace("Rome", "Oslo")
    await serve_text(running, f"{CALL}\n{other}\n{CALL}\n{other}")
    chunks = await stream(running, tools=TOOLS, tool_choice=REQUIRED)
    assert chunks[-1].choices[0].finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls]
    arguments = [
        "".join(piece.function.arguments_json for piece in pieces if piece.index == index)
        for index in range(3)
    ]
    assert arguments == ['{"city": "Rome"}', '{"city": "Oslo"}', ""]
    assert len({piece.id for piece in pieces if piece.id}) == 2
    assert running.engine.num_running == 0


async def test_required_call_that_is_cut_off_has_its_partial_arguments(running: Running) -> None:
    await serve_text(running, "")
    other = CALL.replace("Rome", "Oslo")
    running.engine.answer(f"{CALL}\n{other[:-20]}", finish_reason=FinishReason.LENGTH)
    [choice] = (await complete(running, tools=TOOLS, tool_choice=REQUIRED)).choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert [call.function.arguments_json for call in choice.message.tool_calls] == [
        '{"city": "Rome"}',
        '{"city": "',
    ]


async def test_call_of_an_unknown_function_is_content_and_ends_with_stop(
    running: Running,
) -> None:
    text = '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'
    await serve_text(running, text)
    [choice] = (await complete(running, tools=TOOLS)).choices
    assert choice.message.content[0].text == text
    assert choice.finish_reason == chat_pb2.FINISH_REASON_STOP


async def test_call_that_is_cut_off_ends_with_length(running: Running) -> None:
    await serve_text(running, "")
    running.engine.answer(CALL[:-20], finish_reason=FinishReason.LENGTH)
    [choice] = (await complete(running, tools=TOOLS)).choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert choice.message.tool_calls[0].function.arguments_json.startswith('{"city"')


async def test_output_without_tools_is_never_a_call(running: Running) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": NONE}):
        await serve_text(running, CALL)
        [choice] = (await complete(running, **fields)).choices
        assert choice.message.content[0].text == CALL
        assert b"get_weather" not in bytes(running.engine.requests[0].prompt_token_ids)


async def test_template_without_tools_receives_tools_and_results_as_text(
    running: Running,
) -> None:
    await serve_text(running, "ok")
    function = chat_pb2.FunctionCall(name="get_weather", arguments_json='{"city":"Rome"}')
    Message, Part = chat_pb2.ChatMessage, chat_pb2.ContentPart  # noqa: N806
    history = [
        Message(role=chat_pb2.ROLE_USER, content=[Part(text="Warm?")]),
        Message(
            role=chat_pb2.ROLE_ASSISTANT,
            tool_calls=[chat_pb2.ToolCall(id="call_1", function=function)] * 2,
        ),
        Message(role=chat_pb2.ROLE_TOOL, tool_call_id="call_1", content=[Part(text="31")]),
        Message(role=chat_pb2.ROLE_TOOL, tool_call_id="call_1", content=[Part(text="13")]),
    ]
    await complete(running, tools=TOOLS, messages=history)
    prompt = bytes(running.engine.requests[0].prompt_token_ids).decode()
    assert prompt.startswith("<system>You can call functions.")
    assert '"description": "About now"' in prompt
    written = SYNTAXES[ToolFormat.HERMES].written([("get_weather", '{"city":"Rome"}')] * 2)
    assert f"<user>Warm?<assistant>{written}<user>" in prompt
    results = "<tool_response>\n31\n</tool_response>\n<tool_response>\n13\n</tool_response>"
    assert prompt.endswith(f"<user>{results}<assistant>")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tools": [tool(f"f{i}") for i in range(129)]}, "tools"),
        ({"tools": [chat_pb2.Tool()]}, "tools[0].function"),
        ({"tools": [tool("")]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("a b")]}, "tools[1].function.name"),
        ({"tools": [tool("x" * 65)]}, "tools[0].function.name"),
        ({"tools": [tool("f"), tool("f")]}, "tools[1].function.name"),
        ({"tools": [tool("f", "{")]}, "tools[0].function.parameters_json_schema"),
        ({"tools": [tool("f", {"type": "array"})]}, "tools[0].function.parameters_json_schema"),
        (
            {"tools": [tool("f"), tool("g", {"properties": {"a": SET}}, strict=True)]},
            "tools[1].function.parameters_json_schema.properties.a.uniqueItems",
        ),
        ({"tool_choice": REQUIRED}, "tool_choice.mode"),
        ({"tool_choice": Choice(function_name="f")}, "tool_choice.function_name"),
        ({"tools": TOOLS, "tool_choice": Choice(function_name="f")}, "tool_choice.function_name"),
        (
            {
                "tools": TOOLS,
                "tool_choice": Choice(
                    allowed_tools=chat_pb2.AllowedTools(
                        mode=Choice.MODE_AUTO, function_names=["now", "then"]
                    )
                ),
            },
            "tool_choice.allowed_tools.function_names",
        ),
        (
            {
                "tools": TOOLS,
                "tool_choice": REQUIRED,
                "response_format": chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat()),
            },
            "response_format",
        ),
    ],
)
async def test_invalid_tools_are_rejected_with_their_field(
    running: Running, grammars: CompiledGrammars, fields: dict[str, Any], field: str
) -> None:
    await serve(running, FakeEngine(), grammars)
    error = await rejected(running, **fields)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == [field]
    assert running.engine.requests == []


async def test_tools_that_cannot_fit_are_rejected_by_their_size(running: Running) -> None:
    big = tool("f")
    big.function.description = "x" * 6000
    error = await rejected(running, tools=[big])
    assert error.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_schema_that_cannot_be_enforced_is_accepted_unless_strict(
    running: Running, grammars: CompiledGrammars
) -> None:
    odd = {
        "properties": {
            "a": SET,
            "b": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?\d*$", "maxLength": 9},
            "c": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            "d": {"type": "string", "pattern": r"\bx"},
        },
        "required": ["a"],
    }
    await serve_text(running, "ok")
    await complete(running, tools=[tool("f", odd)])
    await serve(running, RandomEngine(seed=1), grammars)
    [choice] = (await complete(running, tools=[tool("f", odd)], tool_choice=REQUIRED)).choices
    assert isinstance(json.loads(choice.message.tool_calls[0].function.arguments_json)["a"], list)
    await serve_text(running, "ok")  # this tool is not strict, only the other one
    await complete(running, tools=[tool("f", odd), tool("g", WEATHER, strict=True)])


@pytest.mark.parametrize("mode", [AUTO, REQUIRED])
async def test_logprobs_of_a_required_call_are_not_returned(running: Running, mode: Choice) -> None:
    engine = FakeEngine()
    logprob = TokenLogprobs(65, -0.5)
    engine.script = [TokenOutput((byte,), logprobs=(logprob,)) for byte in CALL.encode()]
    engine.script.append(TokenOutput((EOS,), FinishReason.STOP, logprobs=(logprob,)))
    await serve(running, engine, byte_grammars())
    [choice] = (await complete(running, tools=TOOLS, tool_choice=mode, logprobs=True)).choices
    assert len(choice.message.tool_calls) == 1
    assert len(choice.logprobs) == (0 if mode is REQUIRED else len(CALL))


async def test_response_format_with_tools_allows_a_tool_call(
    running: Running, grammars: CompiledGrammars
) -> None:
    response_format = chat_pb2.ResponseFormat(choice=chat_pb2.ChoiceFormat(choices=["yes", "no"]))
    await serve(running, RandomEngine(seed=2), grammars)
    kinds = set()
    for _ in range(12):
        [choice] = (await complete(running, tools=TOOLS, response_format=response_format)).choices
        check(choice.message.tool_calls)
        kinds.add(bool(choice.message.tool_calls))
        if not choice.message.tool_calls:
            assert choice.message.content[0].text in ("yes", "no")
    assert kinds == {True, False}
    await serve(running, RandomEngine(seed=2), grammars, ChatFormats(ToolFormat.JSON))
    error = await rejected(running, tools=TOOLS, response_format=response_format)
    assert (error.reason, error.fields) == ("UNSUPPORTED_FIELD", ["response_format"])


THINKING = {"reasoning": ReasoningFormat.THINK}


async def test_reasoning_is_separated_and_counted(running: Running) -> None:
    text = "<think>\nHm.\n</think>\n\nFour."
    await serve_text(running, text, **THINKING)
    completion = await complete(running)
    message = completion.choices[0].message
    assert (message.reasoning_content, message.content[0].text) == ("Hm.", "Four.")
    num_reasoning_tokens = len("<think>\nHm.\n</think>")
    assert completion.usage.reasoning_tokens == num_reasoning_tokens
    chunks = await stream(running)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.reasoning_content for delta in deltas) == "Hm."
    assert "".join(delta.content for delta in deltas) == "Four."
    assert chunks[-1].usage.reasoning_tokens == num_reasoning_tokens


async def test_reasoning_in_one_engine_output_is_counted(running: Running) -> None:
    text = b"<think>Hm.</think>Four."
    await serve_text(running, "", **THINKING)
    running.engine.script = [TokenOutput((*text, EOS), FinishReason.STOP)]
    completion = await complete(running)
    assert completion.usage.reasoning_tokens == len("<think>Hm.</think>")
    assert completion.usage.completion_tokens == len(text) + 1
    assert completion.choices[0].message.content[0].text == "Four."


async def test_reasoning_opened_by_the_prompt_is_separated(running: Running) -> None:
    await serve_text(running, "Hm.</think>Four.", **THINKING)
    opened = chat_pb2.PromptOptions(add_generation_prompt=False)
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_ASSISTANT, content=[chat_pb2.ContentPart(text="<think>")]
    )
    completion = await complete(running, messages=[message], prompt=opened)
    assert completion.choices[0].message.reasoning_content == "Hm."
    assert completion.usage.reasoning_tokens == len("Hm.</think>")


async def test_constraint_allows_reasoning_before_the_output(
    running: Running, grammars: CompiledGrammars
) -> None:
    thinking = ChatFormats(ToolFormat.HERMES, False, ReasoningFormat.THINK)
    response_format = chat_pb2.ResponseFormat(choice=chat_pb2.ChoiceFormat(choices=["yes", "no"]))
    await serve(running, FakeEngine(), grammars, thinking)
    await complete_empty(running, response_format=response_format)
    await complete_empty(running, tools=TOOLS, tool_choice=REQUIRED)
    texts = ("<think>Hm { <tool_call></think>\n\nyes", f"<think>Hm</think>{CALL}")
    for request, text in zip(running.engine.requests, texts, strict=True):
        for start in (text, text.rpartition("</think>")[2].lstrip()):
            assert request.constraint is not None
            matcher = request.constraint.matcher()
            for byte in start.encode():
                assert matcher.allowed_tokens()[byte // 8] >> byte % 8 & 1, start
                matcher.advance(byte)
            assert matcher.allowed_tokens()[EOS // 8] >> EOS % 8 & 1


async def complete_empty(running: Running, **fields: Any) -> None:
    running.engine.script = [TokenOutput((EOS,), FinishReason.STOP)]
    await complete(running, **fields)


async def test_stop_string_is_matched_in_reasoning(running: Running) -> None:
    await serve_text(running, "<think>Hm. END.</think>Four.", **THINKING)
    sampling = chat_pb2.SamplingParams(stop=["END"])
    [choice] = (await complete(running, sampling=sampling)).choices
    assert choice.message.reasoning_content == "Hm. "
    assert choice.matched_stop.text == "END"
