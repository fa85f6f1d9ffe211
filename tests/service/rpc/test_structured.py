"""Answers in a form, over the wire, by an engine that obeys nothing but grammars."""

import asyncio
import json
import re
from contextlib import suppress
from typing import Any

import grpc
import jsonschema
import pytest

from chatrpc.v1 import chat_pb2, completion_pb2, completion_service_pb2
from service.text.grammars import CompiledGrammars
from service.types import FinishReason, TokenOutput
from tests.fakes.engine import FakeEngine
from tests.fakes.grammars import RandomEngine, byte_grammars
from tests.service.rpc.conftest import Running
from tests.service.rpc.structured import complete, refused, serve
from tests.service.text.test_grammars import COSTLY_LATER

SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "age": {"type": "integer", "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
Format = chat_pb2.ResponseFormat


@pytest.fixture(scope="module")
def grammars() -> CompiledGrammars:
    return byte_grammars()


@pytest.fixture
async def obedient(running: Running, grammars: CompiledGrammars) -> Running:
    """A server whose model answers with what its grammar allows."""
    return await serve(running, RandomEngine(seed=7), grammars)


def schema_format(schema: object) -> Format:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return Format(json_schema=chat_pb2.JsonSchemaFormat(name="x", schema_json=text))


async def content(running: Running, **fields: Any) -> str:
    [choice] = (await complete(running, **fields)).choices
    assert choice.finish_reason == chat_pb2.FINISH_REASON_STOP
    return choice.message.content[0].text


@pytest.mark.parametrize("strict", [None, True, False])
async def test_a_json_schema(obedient: Running, strict: bool | None) -> None:
    wanted = chat_pb2.JsonSchemaFormat(name="x", schema_json=json.dumps(SCHEMA), strict=strict)
    text = await content(obedient, response_format=Format(json_schema=wanted))
    jsonschema.validate(json.loads(text), SCHEMA)


async def test_the_other_forms(obedient: Running) -> None:
    any_object = Format(json_object=chat_pb2.JsonObjectFormat())
    assert isinstance(json.loads(await content(obedient, response_format=any_object)), dict)
    no_schema = Format(json_schema=chat_pb2.JsonSchemaFormat(name="x"))
    json.loads(await content(obedient, response_format=no_schema))
    regex = r"^\d{3}-[a-f]{2}(/x)?$"
    assert re.fullmatch(regex, await content(obedient, response_format=Format(regex=regex)))
    choices = chat_pb2.ChoiceFormat(choices=["red", 'gr"een', "bl\\ue", "é\n"])
    assert await content(obedient, response_format=Format(choice=choices)) in choices.choices
    lark = 'start: "<" name ">"\nname: /[a-z]{2}/'
    assert re.fullmatch(
        r"<[a-z]{2}>", await content(obedient, response_format=Format(grammar=lark))
    )
    gbnf = 'root ::= "<" name ">"\nname ::= [a-z] [a-z]'
    assert re.fullmatch(
        r"<[a-z]{2}>", await content(obedient, response_format=Format(grammar=gbnf))
    )


@pytest.mark.parametrize(
    "regex", [r"\d{8}", r"[\d]{8}", r"\w{8}", r"[^\W]{8}", r"\\d{8}", r"(?:\d|x){8}"]
)
async def test_digits_and_words_are_ascii(obedient: Running, regex: str) -> None:
    for _ in range(3):
        text = await content(obedient, response_format=Format(regex=regex))
        assert re.fullmatch(regex, text, re.ASCII)


async def test_a_text_completion_can_have_a_form_too(obedient: Running) -> None:
    form = Format(choice=chat_pb2.ChoiceFormat(choices=["red", "blue"]))
    params = completion_pb2.CompletionParams(
        model="fake", prompts=[completion_pb2.CompletionPrompt(text="Sky:")], response_format=form
    )
    response = await obedient.completions.CreateCompletion(
        completion_service_pb2.CreateCompletionRequest(params=params)
    )
    assert response.completion.choices[0].text in {"red", "blue"}


async def test_free_text_has_no_constraint(running: Running) -> None:
    running.engine.answer("x")
    free = Format(text=chat_pb2.TextFormat())
    await complete(running, response_format=free)
    assert running.engine.requests[0].constraint is None


async def test_an_answer_in_a_form_ends_though_ends_are_ignored(obedient: Running) -> None:
    ignoring = chat_pb2.SamplingParams(ignore_eos=True)
    wanted = Format(choice=chat_pb2.ChoiceFormat(choices=["a"]))
    assert await content(obedient, response_format=wanted, sampling=ignoring) == "a"


SCHEMA_FIELD = "response_format.json_schema.schema_json"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        (schema_format("{"), SCHEMA_FIELD),
        (schema_format("[]"), SCHEMA_FIELD),
        (schema_format({"type": "nothing"}), SCHEMA_FIELD),
        (schema_format({"type": "integer", "minimum": 5, "maximum": 3}), SCHEMA_FIELD),
        (
            schema_format({"type": "object", "required": ["a"], "properties": {"a": False}}),
            SCHEMA_FIELD,
        ),
        (schema_format({"type": "array", "uniqueItems": True}), SCHEMA_FIELD),
        (schema_format({"not": {}}), SCHEMA_FIELD),
        (schema_format({"$ref": "#/nowhere"}), SCHEMA_FIELD),
        (schema_format({"$ref": "http://127.0.0.1:9/schema"}), SCHEMA_FIELD),
        (schema_format({"$ref": "file:///etc/passwd"}), SCHEMA_FIELD),
        (schema_format({"type": "string", "format": "phone"}), SCHEMA_FIELD),
        (schema_format({"type": "string", "pattern": "("}), SCHEMA_FIELD),
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
async def test_a_form_that_cannot_be_had_is_refused_by_its_field(
    obedient: Running, wanted: Format, field: str
) -> None:
    error = await refused(obedient, response_format=wanted)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == [field]
    assert obedient.engine.requests == []


async def test_a_grammar_that_costs_too_much_on_the_way_ends_the_stream_with_its_reason(
    obedient: Running,
) -> None:
    wanted = Format(grammar=COSTLY_LATER)
    error = await refused(obedient, response_format=wanted)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == ["response_format.grammar"]
    assert len(obedient.engine.requests) == 1


@pytest.mark.parametrize(("said", "is_whole"), [("ab", True), ("a", False)])
async def test_an_answer_for_which_no_token_is_left_is_in_its_form_or_an_error(
    running: Running, grammars: CompiledGrammars, said: str, is_whole: bool
) -> None:
    """So ends a sequence when the grammar and, say, the request's bad words agree on none."""
    engine = FakeEngine()
    engine.script = [TokenOutput((byte,)) for byte in said.encode()]
    engine.script.append(TokenOutput((), FinishReason.STOP))
    await serve(running, engine, grammars)
    wanted = Format(regex="(ab)+")
    if is_whole:
        assert await content(running, response_format=wanted) == "ab"
    else:
        error = await refused(running, response_format=wanted)
        assert error.fields == ["response_format.regex"]


async def test_a_tokenizer_that_cannot_be_held_to_a_grammar(running: Running) -> None:
    error = await refused(running, response_format=schema_format({}))
    assert (error.reason, error.fields) == ("UNSUPPORTED_FIELD", [SCHEMA_FIELD])


async def test_others_go_on_while_a_hostile_grammar_is_compiled(obedient: Running) -> None:
    hostile = Format(grammar="start: " + " | ".join(['"x"'] * 2500))
    slow = [asyncio.ensure_future(finish(obedient, hostile)) for _ in range(4)]
    wanted = Format(choice=chat_pb2.ChoiceFormat(choices=["a"]))
    assert await content(obedient, response_format=wanted) == "a"
    await asyncio.gather(*slow)


async def finish(running: Running, wanted: Format) -> None:
    """Wait for the answer, or for a refusal."""
    with suppress(grpc.aio.AioRpcError):
        await complete(running, response_format=wanted)
