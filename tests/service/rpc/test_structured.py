"""Structured output over the wire, with an engine that chooses tokens at random in a grammar."""

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import grpc
import jsonschema
import pytest

from chatrpc.v1 import chat_pb2, completion_pb2, completion_service_pb2
from service.domain.engine import EngineCapabilities, FinishReason, TokenOutput
from service.text.grammars import CompiledGrammars
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import COSTLY_LATER, RandomEngine, byte_grammars
from tests.fakes.tokenizer import EOS
from tests.service.rpc.structured import complete, rejected, serve
from tests.support.grpc_server import Running

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SET = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
Format = chat_pb2.ResponseFormat


@pytest.fixture(scope="module")
def grammars() -> CompiledGrammars:
    return byte_grammars()


@pytest.fixture
async def constrained(running: Running, grammars: CompiledGrammars) -> Running:
    """Return a server whose model generates random tokens that the grammar allows."""
    return await serve(running, RandomEngine(seed=7), grammars)


def schema_format(schema: object, *, strict: bool | None = None) -> Format:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    json_schema = chat_pb2.JsonSchemaFormat(name="x", schema_json=text, strict=strict)
    return Format(json_schema=json_schema)


async def content(running: Running, **fields: Any) -> str:
    [choice] = (await complete(running, **fields)).choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_STOP
    return choice.message.content[0].text


@pytest.mark.parametrize("strict", [None, True, False])
async def test_json_schema_constrains_the_output(constrained: Running, strict: bool | None) -> None:
    response_format = schema_format(SCHEMA, strict=strict)
    text = await content(constrained, response_format=response_format)
    jsonschema.validate(json.loads(text), SCHEMA)


async def test_every_other_format_constrains_the_output(constrained: Running) -> None:
    any_object = Format(json_object=chat_pb2.JsonObjectFormat())
    assert isinstance(json.loads(await content(constrained, response_format=any_object)), dict)
    no_schema = Format(json_schema=chat_pb2.JsonSchemaFormat(name="x"))
    json.loads(await content(constrained, response_format=no_schema))
    regex = r"^\d{3}-[a-f]{2}(/x)?$"
    assert re.fullmatch(regex, await content(constrained, response_format=Format(regex=regex)))
    choices = chat_pb2.ChoiceFormat(choices=["red", 'gr"een', "bl\\ue", "é\n"])
    assert await content(constrained, response_format=Format(choice=choices)) in choices.choices
    lark = 'start: "<" name ">"\nname: /[a-z]{2}/'
    assert re.fullmatch(
        r"<[a-z]{2}>", await content(constrained, response_format=Format(grammar=lark))
    )
    gbnf = 'root ::= "<" name ">"\nname ::= [a-z] [a-z]'
    assert re.fullmatch(
        r"<[a-z]{2}>", await content(constrained, response_format=Format(grammar=gbnf))
    )


@pytest.mark.parametrize(
    "regex", [r"\d{8}", r"[\d]{8}", r"\w{8}", r"[^\W]{8}", r"\\d{8}", r"(?:\d|x){8}"]
)
async def test_character_classes_match_only_ascii(constrained: Running, regex: str) -> None:
    for _ in range(3):
        text = await content(constrained, response_format=Format(regex=regex))
        assert re.fullmatch(regex, text, re.ASCII)


async def test_text_completion_with_a_format_is_constrained(constrained: Running) -> None:
    response_format = Format(choice=chat_pb2.ChoiceFormat(choices=["red", "blue"]))
    params = completion_pb2.CompletionParams(
        model="fake",
        prompts=[completion_pb2.CompletionPrompt(text="Sky:")],
        response_format=response_format,
    )
    response = await constrained.completions.CreateCompletion(
        completion_service_pb2.CreateCompletionRequest(params=params)
    )
    assert response.completion.choices[0].text in {"red", "blue"}


async def test_text_format_has_no_constraint(running: Running) -> None:
    running.engine.answer("x")
    free = Format(text=chat_pb2.TextFormat())
    await complete(running, response_format=free)
    assert running.engine.requests[0].constraint is None


async def test_constrained_output_ends_although_eos_is_ignored(constrained: Running) -> None:
    ignoring = chat_pb2.SamplingParams(ignore_eos=True)
    response_format = Format(choice=chat_pb2.ChoiceFormat(choices=["a"]))
    assert await content(constrained, response_format=response_format, sampling=ignoring) == "a"


SCHEMA_FIELD = "response_format.json_schema.schema_json"


@pytest.mark.parametrize(
    ("response_format", "field"),
    [
        (schema_format("{"), SCHEMA_FIELD),
        (schema_format("[]"), SCHEMA_FIELD),
        (schema_format({"type": "nothing"}), f"{SCHEMA_FIELD}.type"),
        (schema_format({"type": "integer", "minimum": 5, "maximum": 3}), SCHEMA_FIELD),
        (
            schema_format({"type": "object", "required": ["a"], "properties": {"a": False}}),
            SCHEMA_FIELD,
        ),
        (
            schema_format({"properties": {"a.b": SET}}, strict=True),
            f'{SCHEMA_FIELD}.properties["a.b"].uniqueItems',
        ),
        (schema_format({"not": {}}), SCHEMA_FIELD),
        (schema_format({"$ref": "#/nowhere"}), f"{SCHEMA_FIELD}.$ref"),
        (schema_format({"$ref": "http://127.0.0.1:9/schema"}), f"{SCHEMA_FIELD}.$ref"),
        (
            schema_format({"anyOf": [{"$ref": "file:///etc/passwd"}]}),
            f"{SCHEMA_FIELD}.anyOf[0].$ref",
        ),
        (schema_format({"type": "string", "pattern": "("}), f"{SCHEMA_FIELD}.pattern"),
        (schema_format({"enum": [f"value {i}" for i in range(50_000)]}), SCHEMA_FIELD),
        (Format(regex="("), "response_format.regex"),
        (Format(regex=""), "response_format.regex"),
        (Format(regex="a" * 8193), "response_format.regex"),
        (Format(grammar="start: nowhere"), "response_format.grammar"),
        (Format(grammar="root ::= ("), "response_format.grammar"),
        (Format(grammar="#" * 16_385), "response_format.grammar"),
        (Format(choice=chat_pb2.ChoiceFormat()), "response_format.choice.choices"),
        (
            Format(choice=chat_pb2.ChoiceFormat(choices=["a", ""])),
            "response_format.choice.choices[1]",
        ),
        (
            Format(choice=chat_pb2.ChoiceFormat(choices=["a"] * 1001)),
            "response_format.choice.choices",
        ),
    ],
)
async def test_invalid_format_is_rejected_with_its_field(
    constrained: Running, response_format: Format, field: str
) -> None:
    error = await rejected(constrained, response_format=response_format)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == [field]
    assert not re.search("x-guidance|whitespace|start:|%json|T0", error.message)
    assert constrained.engine.requests == []


@pytest.mark.parametrize(
    ("response_format", "message"),
    [
        (Format(regex="a("), "This format cannot be enforced: a regex is invalid: unclosed group."),
        (Format(regex="a(?=b)"),
         ("This format cannot be enforced: a regex is invalid: look-around, including look-ahead "
          "and look-behind, is not supported.")),
        (Format(grammar="start: nowhere"),
         'This format cannot be enforced: line 1, column 8: unknown name: "nowhere".'),
        (Format(regex="a{1000000000}"),
         "This format cannot be enforced: it costs more than is allowed to compile or to follow."),
        (schema_format({"minimum": "x"}), "The value must be a number."),
        (schema_format({"enum": []}), "No JSON value can match the schema."),
    ],
)  # fmt: skip
async def test_error_states_the_reason_in_one_sentence(
    constrained: Running, response_format: Format, message: str
) -> None:
    assert (await rejected(constrained, response_format=response_format)).message == message


async def test_schema_that_is_not_strict_is_enforced_in_part(
    constrained: Running,
) -> None:
    schema = {"type": "object", "properties": {"a": SET}, "required": ["a"]}
    text = await content(constrained, response_format=schema_format(schema))
    assert all(isinstance(item, str) for item in json.loads(text)["a"])


@pytest.mark.parametrize(
    "grammar",
    [
        'start: %json {"enum": [9007199254740993], "minimum": 9007199254740993}',
        'start: x\nx: %json{"const": 9007199254740993} // %json {',
    ],
)
async def test_integers_of_schemas_in_a_grammar_are_exact(
    constrained: Running, grammar: str
) -> None:
    assert await content(constrained, response_format=Format(grammar=grammar)) in (
        "9007199254740993",
        " 9007199254740993",
        "\n9007199254740993",
    )


@pytest.mark.parametrize(
    ("grammar", "field"),
    [
        (
            'start: %json {"type": "array", "uniqueItems": true}',
            "response_format.grammar.uniqueItems",
        ),
        ('start: %json {"multipleOf": 999983}', "response_format.grammar.multipleOf"),
        ("start: %json {", "response_format.grammar"),
        ("start: A\nA: /a/" + " & /a/" * 17, "response_format.grammar"),
    ],
)
async def test_grammar_with_a_costly_part_is_rejected(
    constrained: Running, grammar: str, field: str
) -> None:
    error = await rejected(constrained, response_format=Format(grammar=grammar))
    assert error.fields == [field]


@pytest.mark.parametrize(
    ("begun", "rest"),
    [
        ('{"name": "A', 'da", "age": 7}'),
        ("", '{"name":"Ada","age":7}'),
        ('{"name": "Ada", "age": 7}', ""),
    ],
)
async def test_continued_message_is_the_beginning_of_the_output(
    running: Running, grammars: CompiledGrammars, begun: str, rest: str
) -> None:
    engine = FakeEngine()
    engine.script = [*(TokenOutput((byte,)) for byte in rest.encode())]
    engine.script.append(TokenOutput((EOS,), FinishReason.STOP))
    await serve(running, engine, grammars)
    assert await content(running, **continued(begun)) == rest
    [request] = engine.requests
    assert request.constraint is not None
    matcher = request.constraint.matcher()
    for byte in rest.encode():
        assert matcher.allowed_tokens()[byte // 8] >> byte % 8 & 1
        matcher.advance(byte)
    assert matcher.allowed_tokens()[EOS // 8] >> EOS % 8 & 1


async def test_continued_message_outside_the_grammar_is_rejected(constrained: Running) -> None:
    error = await rejected(constrained, **continued("Sure: {"))
    assert error.fields == ["messages[1].content"]
    assert constrained.engine.requests == []


async def test_continued_message_is_rejected_if_the_engine_cannot_continue_a_grammar(
    running: Running, grammars: CompiledGrammars
) -> None:
    engine = FakeEngine()
    engine.capabilities = EngineCapabilities("fake", continues_constraints=False)
    await serve(running, engine, grammars)
    error = await rejected(running, **continued("{"))
    assert (error.reason, error.fields) == ("UNSUPPORTED_FIELD", ["prompt.continue_final_message"])
    assert engine.requests == []


def continued(begun: str) -> dict[str, Any]:
    part = chat_pb2.ContentPart
    return {
        "messages": [
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, content=[part(text="Who?")]),
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, content=[part(text=begun)]),
        ],
        "prompt": chat_pb2.PromptOptions(continue_final_message=True, add_generation_prompt=False),
        "response_format": schema_format(SCHEMA),
    }


async def test_grammar_that_costs_too_much_later_ends_the_call_with_its_reason(
    constrained: Running,
) -> None:
    response_format = Format(grammar=COSTLY_LATER)
    error = await rejected(constrained, response_format=response_format)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == ["response_format.grammar"]
    assert len(constrained.engine.requests) == 1


@pytest.mark.parametrize(("output", "is_complete"), [("ab", True), ("a", False)])
async def test_output_without_allowed_tokens_is_complete_or_an_error(
    running: Running, grammars: CompiledGrammars, output: str, is_complete: bool
) -> None:
    """The grammar and, for example, the bad words of a request may together allow no token."""
    engine = FakeEngine()
    engine.script = [TokenOutput((byte,)) for byte in output.encode()]
    engine.script.append(TokenOutput((), FinishReason.STOP))
    await serve(running, engine, grammars)
    response_format = Format(regex="(ab)+")
    if is_complete:
        assert await content(running, response_format=response_format) == "ab"
    else:
        error = await rejected(running, response_format=response_format)
        assert error.fields == ["response_format.regex"]


async def test_format_is_unsupported_without_grammars(running: Running) -> None:
    error = await rejected(running, response_format=schema_format({}))
    assert (error.reason, error.fields) == ("UNSUPPORTED_FIELD", ["response_format.json_schema"])


async def test_other_calls_are_served_while_a_costly_grammar_is_compiled(
    constrained: Running,
) -> None:
    costly = Format(grammar="start: " + " | ".join(['"x"'] * 2500))
    slow = [asyncio.ensure_future(finish(constrained, costly)) for _ in range(4)]
    response_format = Format(choice=chat_pb2.ChoiceFormat(choices=["a"]))
    assert await content(constrained, response_format=response_format) == "a"
    await asyncio.gather(*slow)


async def finish(running: Running, response_format: Format) -> None:
    """Wait for the response or the error."""
    with suppress(grpc.aio.AioRpcError):
        await complete(running, response_format=response_format)
