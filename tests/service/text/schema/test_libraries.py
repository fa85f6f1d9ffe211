"""Schemas that common libraries write are accepted, and outputs for them can be parsed."""

import datetime as dt
import decimal
import enum
import ipaddress
import json
import pathlib
import random
import uuid
from typing import Annotated, Any, Literal, NamedTuple

import jsonschema
import pytest
from annotated_types import Len
from pydantic import AnyUrl, BaseModel, Field, SecretStr, TypeAdapter, create_model
from typing_extensions import TypedDict

from service.text.schema.errors import UnsupportedKeyword
from tests.service.text.schema.grammar_checks import (
    accepts,
    compile_schema,
    load_exact,
    random_output,
    schema_rules,
)

ZOD = pathlib.Path(__file__).parents[3] / "data" / "schemas" / "zod.json"


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=0, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    name: Annotated[str, Field(max_length=5)]


class Tree(BaseModel):
    value: int
    children: Annotated[list["Tree"], Len(0, 2)] = []


class Point(NamedTuple):
    x: int
    y: float


class Options(TypedDict, total=False):
    name: str


TYPES: dict[str, Any] = {
    "path": pathlib.Path,
    "secret": SecretStr,
    "bytes": bytes,
    "decimal": decimal.Decimal,
    "bounded decimal": Annotated[decimal.Decimal, Field(max_digits=5, decimal_places=2)],
    "int64": Annotated[int, Field(ge=-(2**63), le=2**63 - 1)],
    "uint64": Annotated[int, Field(ge=0, le=2**64 - 1)],
    "large": Annotated[int, Field(gt=2**53)],
    "float": Annotated[float, Field(gt=0, lt=1e19)],
    "multiple": Annotated[int, Field(multiple_of=5)],
    "datetime": dt.datetime,
    "date": dt.date,
    "timedelta": dt.timedelta,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "url": AnyUrl,
    "enum": Color,
    "literal": Literal[1, "a", None],
    "tuple": tuple[int, str],
    "tuple of any length": tuple[int, ...],
    "named tuple": Point,
    "typed dict": Options,
    "limited list": Annotated[list[int], Len(1, 3)],
    "limited string": Annotated[str, Field(min_length=1, max_length=5)],
    "pattern": Annotated[str, Field(pattern=r"^\d{2}-[a-z]+$")],
    "map": dict[str, int],
    "map of enum": dict[Color, int],
    "optional": int | None,
    "union": int | Annotated[str, Field(max_length=3)] | bool | None,
    "union of models": Cat | Dog | None,
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")],
    "recursive": Tree,
    "set of enum": set[Color],
    "any": Any,
}


@pytest.mark.parametrize("name", TYPES)
def test_pydantic_schema_generates_json_that_pydantic_accepts(name: str) -> None:
    model = create_model("Answer", field=(TYPES[name], ...))
    constraint = compile_schema(json.dumps(model.model_json_schema()))
    num_read = 0
    for seed in range(12):
        text = random_output(constraint, random.Random(seed), max_tokens=400)
        if text is not None:
            num_read += 1
            if "decimal" not in name:  # the patterns of decimals allow more than pydantic accepts
                model.model_validate_json(text)
    assert num_read > 3


@pytest.mark.parametrize("value", [set[str], frozenset[int], list[set[float]]])
def test_pydantic_set_is_accepted_without_enforcing_unique_items(value: Any) -> None:
    schema = json.dumps(TypeAdapter(value).json_schema())
    [unenforced] = schema_rules(schema, is_strict=False).unenforced
    assert unenforced.path.endswith(".uniqueItems")
    with pytest.raises(UnsupportedKeyword):
        schema_rules(schema)


@pytest.mark.parametrize("name", json.loads(ZOD.read_text()))
def test_zod_schema_is_followed(name: str) -> None:
    schema = json.loads(ZOD.read_text())[name]
    constraint = compile_schema(json.dumps(schema))
    # Draft 7 and OpenAPI have `items` as a list; pydantic and zod 4 write draft 2020.
    is_old = "draft-07" in schema.get("$schema", "draft-07")
    validate = (jsonschema.Draft7Validator if is_old else jsonschema.Draft202012Validator)(schema)
    for seed in range(3):
        text = random_output(constraint, random.Random(seed), max_tokens=400)
        if text is not None and ".openai" not in name:  # these have bounds as in draft 4
            validate.validate(load_exact(text))


PROTOBUF = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        "count": {"anyOf": [{"type": "integer", "maximum": 2**64 - 1, "minimum": 0},
                            {"type": "string", "pattern": "^-?[0-9]+$"}]},
        "text": {"oneOf": [{"type": "null"}, {"type": "string"}]},
        "size": {"type": "integer", "exclusiveMaximum": 2**32, "minimum": -(2**31)},
        "data": {"type": "string", "format": "binary", "binaryEncoding": "base64"},
        "any": {"additionalProperties": True, "type": "object"},
    },
    "additionalProperties": False,
    "required": ["id"],
}  # fmt: skip


def test_protobuf_and_go_integers_are_exact() -> None:
    constraint = compile_schema(PROTOBUF)
    for text in ('{"id":9223372036854775807,"count":18446744073709551615}', '{"id":0,"text":null}'):
        assert accepts(constraint, text)
    for text in (
        '{"id":9223372036854775808}',
        '{"id":0,"count":18446744073709551616}',
        '{"id":0,"size":4294967296}',
        '{"id":0,"count":"x"}',
    ):
        assert not accepts(constraint, text)
    assert accepts(constraint, '{"id":0,"count":"-5"}')


OPENAPI: dict[str, Any] = {
    "components": {
        "schemas": {
            "Cat": {
                "type": "object",
                "properties": {"petType": {"type": "string", "enum": ["Cat"]}},
                "required": ["petType"],
            },
            "Dog": {
                "allOf": [
                    {"$ref": "#/components/schemas/Pet"},
                    {"type": "object", "properties": {"bark": {"type": "string"}}},
                ]
            },
            "Pet": {
                "type": "object",
                "properties": {"petType": {"const": "Dog"}},
                "required": ["petType"],
                "discriminator": {"propertyName": "petType"},
            },
        }
    },
    "type": "object",
    "properties": {
        "pet": {
            "oneOf": [
                {"$ref": "#/components/schemas/Cat"},
                {"$ref": "#/components/schemas/Dog"},
            ],
            "discriminator": {"propertyName": "petType"},
        },
        "scope": {"oneOf": [{"type": "string"}, {"type": "null"}]},
        "age": {"type": "integer", "format": "int32", "nullable": True, "example": 3},
        "price": {"type": "number", "format": "double", "maximum": 1e19},
    },
    "required": ["pet", "scope"],
}


def test_openapi_unions_are_distinguished_through_references() -> None:
    constraint = compile_schema(OPENAPI)
    assert accepts(constraint, '{"pet":{"petType":"Cat"},"scope":null}')
    assert accepts(constraint, '{"pet":{"petType":"Dog","bark":"x"},"scope":"me","age":3}')
    assert not accepts(constraint, '{"pet":{"petType":"Cow"},"scope":null}')
    assert not accepts(constraint, '{"pet":{"bark":"x"},"scope":null}')
    assert not accepts(constraint, '{"pet":{"petType":"Cat"},"scope":1}')
