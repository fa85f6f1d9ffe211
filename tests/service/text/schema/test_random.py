"""Random schemas: whatever a grammar allows fulfils its schema, checked by another validator."""

import decimal
import random
import re
from contextlib import suppress
from typing import Any

import jsonschema
import pytest

from service.text.schema.enforcement import Weakening
from service.text.schema.errors import SchemaError, UnsupportedKeyword
from service.text.schema.values import dumps, loads
from tests.service.text.schema.compiled import compiled, exact, random_answer, rules
from tests.service.text.schema.random_schemas import random_schema, unenforceable_schema

IMPOSSIBLE = "No answer can fulfil the schema."
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def check(schema: Any, text: str) -> None:
    """The text is JSON that fulfils the schema, in exact arithmetic."""
    with decimal.localcontext(decimal.Context(prec=2_000)):
        validator = jsonschema.Draft202012Validator(exact(dumps(schema)), format_checker=FORMATS)
        validator.validate(exact(text))


@pytest.mark.parametrize("hundred", range(10))
def test_every_answer_to_a_strict_schema_fulfils_it(hundred: int) -> None:
    num_finished = 0
    impossible: list[str] = []
    for seed in range(100 * hundred, 100 * hundred + 100):
        choose = random.Random(seed)
        schema = random_schema(choose)
        try:
            constraint = compiled(schema)
        except UnsupportedKeyword:
            continue
        except SchemaError as error:
            impossible.append(str(error))
            continue
        text = random_answer(constraint, choose)
        if text is not None:
            num_finished += 1
            check(schema, text)
    assert num_finished > 80
    assert set(impossible) <= {IMPOSSIBLE}


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(3))
def test_every_answer_to_a_weakened_schema_fulfils_all_that_is_not_named(hundred: int) -> None:
    num_weakened = 0
    impossible: list[str] = []
    for seed in range(100 * hundred, 100 * hundred + 100):
        choose = random.Random(seed)
        schema = unenforceable_schema(choose)
        try:
            weakenings = rules(schema, is_strict=False).weakenings
        except SchemaError as error:
            impossible.append(str(error))
            continue
        num_weakened += bool(weakenings)
        text = random_answer(compiled(schema, is_strict=False), choose)
        if text is not None:
            check(without(schema, weakenings), text)
    assert num_weakened > 30
    assert set(impossible) <= {IMPOSSIBLE}


def without(schema: Any, weakenings: tuple[Weakening, ...]) -> Any:
    """The schema without the keywords at these paths."""
    schema = loads(dumps(schema))
    for each in weakenings:
        *steps, last = [
            loads(quoted) if quoted else int(index) if index else name
            for name, index, quoted in re.findall(
                r'\.([^.\[]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]', each.path
            )
        ]
        place = schema
        with suppress(KeyError, IndexError):  # it may be within one that is left out already
            for key in steps:
                place = place[key]
            place.pop(last, None)
    return schema
