"""Random schemas: another validator confirms that every output matches its schema."""

import decimal
import random
import re
from contextlib import suppress
from typing import Any

import jsonschema
import pytest

from service.text.schema.enforcement import UnenforcedKeyword
from service.text.schema.errors import SchemaError, UnsupportedKeyword
from service.text.schema.json_values import dumps, loads
from tests.service.text.schema.grammar_checks import (
    compile_schema,
    load_exact,
    random_output,
    schema_rules,
)
from tests.service.text.schema.random_schemas import random_schema, unenforceable_schema

IMPOSSIBLE = "No JSON value can match the schema."
FORMATS = jsonschema.Draft202012Validator.FORMAT_CHECKER


def check(schema: Any, text: str) -> None:
    """Check that the text is JSON that matches the schema, in exact arithmetic."""
    with decimal.localcontext(decimal.Context(prec=2_000)):
        validator = jsonschema.Draft202012Validator(
            load_exact(dumps(schema)), format_checker=FORMATS
        )
        validator.validate(load_exact(text))


@pytest.mark.parametrize("hundred", range(10))
def test_output_of_a_strict_schema_matches_it(hundred: int) -> None:
    num_finished = 0
    impossible: list[str] = []
    for seed in range(100 * hundred, 100 * hundred + 100):
        choose = random.Random(seed)
        schema = random_schema(choose)
        try:
            constraint = compile_schema(schema)
        except UnsupportedKeyword:
            continue
        except SchemaError as error:
            impossible.append(str(error))
            continue
        text = random_output(constraint, choose)
        if text is not None:
            num_finished += 1
            check(schema, text)
    assert num_finished > 80
    assert set(impossible) <= {IMPOSSIBLE}


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(3))
def test_output_of_a_lenient_schema_matches_all_enforced_keywords(hundred: int) -> None:
    num_lenient = 0
    impossible: list[str] = []
    for seed in range(100 * hundred, 100 * hundred + 100):
        choose = random.Random(seed)
        schema = unenforceable_schema(choose)
        try:
            unenforced = schema_rules(schema, is_strict=False).unenforced
        except SchemaError as error:
            impossible.append(str(error))
            continue
        num_lenient += bool(unenforced)
        text = random_output(compile_schema(schema, is_strict=False), choose)
        if text is not None:
            check(without(schema, unenforced), text)
    assert num_lenient > 30
    assert set(impossible) <= {IMPOSSIBLE}


def without(schema: Any, unenforced: tuple[UnenforcedKeyword, ...]) -> Any:
    """Return the schema without the keywords at these paths."""
    schema = loads(dumps(schema))
    for each in unenforced:
        *steps, last = [
            loads(quoted) if quoted else int(index) if index else name
            for name, index, quoted in re.findall(
                r'\.([^.\[]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]', each.path
            )
        ]
        parent = schema
        with suppress(KeyError, IndexError):  # it may be inside a keyword that is already removed
            for key in steps:
                parent = parent[key]
            parent.pop(last, None)
    return schema
