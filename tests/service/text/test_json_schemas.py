import json
import random
from typing import Any

import jsonschema
import pytest

from service.errors import InvalidField, UnsupportedField
from service.text import lark
from service.text.grammars import CompiledGrammars
from service.text.json_schemas import check_cost, check_exact, parse_schema
from tests.fakes.grammars import allowed, byte_grammars, choose_token
from tests.fakes.tokenizer import EOS
from tests.service.text.random_schemas import random_schema


@pytest.fixture(scope="module")
def grammars() -> CompiledGrammars:
    return byte_grammars()


def answer(grammars: CompiledGrammars, schema: dict[str, Any], choose: random.Random) -> str | None:
    """What a model without any sense writes under the schema; None if it comes to no end."""
    matcher = grammars.compile(f"start: {lark.json_schema(schema)}").matcher()
    written = bytearray()
    for _ in range(400):
        token_id = choose_token(choose, allowed(matcher))
        if token_id == EOS:
            return written.decode()
        matcher.advance(token_id)
        written.append(token_id)
    return None


@pytest.mark.parametrize("hundred", range(10))
def test_every_finished_answer_is_valid(grammars: CompiledGrammars, hundred: int) -> None:
    num_finished = 0
    for seed in range(100 * hundred, 100 * hundred + 100):
        choose = random.Random(seed)
        schema = random_schema(choose)
        check_cost(schema, "schema")
        check_exact(schema, "schema")
        text = answer(grammars, schema, choose)
        if text is not None:
            num_finished += 1
            validator = jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.FormatChecker()
            )
            validator.validate(json.loads(text))
    assert num_finished > 90


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "is an object"),
        ("false", "is an object"),
        ('"x"', "is an object"),
        (" " * 131_073, "at most 131072 characters"),
        ('{"a":' * 70 + "1" + "}" * 70, "at most 64 levels deep"),
    ],
)
def test_what_is_no_schema_or_too_much_of_one(text: str, says: str) -> None:
    with pytest.raises(InvalidField, match=says) as caught:
        parse_schema(text, "there")
    assert caught.value.field == "there"


def test_the_schema_that_demands_nothing() -> None:
    assert parse_schema("true", "there") == parse_schema("{}", "there") == {}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 999_983},
        {"type": "number", "multipleOf": 0.1234567},
        {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]},
        {"properties": {f"p{i}": {} for i in range(1001)}},
    ],
)
def test_what_takes_too_long_to_compile_is_refused_before(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as caught:
        check_cost(schema, "there")
    assert caught.value.field == "there"


@pytest.mark.parametrize(
    "schema",
    [
        {"x-guidance": {"lenient": True}},
        {"type": "object", "minProperties": 2},
        {"type": "object", "properties": {"a": {"type": "object", "minProperties": 3}}},
    ],
)
def test_what_a_grammar_would_not_hold_an_answer_to_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedField):
        check_exact(schema, "there")


def test_properties_that_are_required_anyway_may_be_demanded() -> None:
    check_exact({"minProperties": 2, "required": ["a", "b"], "properties": {"a": {}, "b": {}}}, "")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_json_has_no_numbers_for_is_refused(number: str) -> None:
    with pytest.raises(InvalidField, match="no number of JSON"):
        parse_schema('{"multipleOf": ' + number + "}", "field")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidField) as caught:
        parse_schema('{"description": "\\ud800"}', "field")
    assert caught.value.field == "field"
