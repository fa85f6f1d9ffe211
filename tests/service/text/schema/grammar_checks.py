"""Schemas compiled for a tokenizer of bytes, to test what their grammars allow."""

import json
import random
from decimal import Decimal
from typing import Any

from service.domain.chat import JsonLayout
from service.domain.grammar import OutputConstraint
from service.text.grammars import CompiledGrammars
from service.text.schema.json_values import dumps
from service.text.schema.rules import JsonRules, json_rules
from tests.fakes.grammars import allowed, byte_grammars, choose_token
from tests.fakes.tokenizer import EOS

GRAMMARS: CompiledGrammars = byte_grammars()


def schema_rules(schema: Any, **options: Any) -> JsonRules:
    """Return the rules of a schema, given as JSON text or as a value. It is strict by default."""
    text = schema if isinstance(schema, str) else dumps(schema)
    layout = options.pop("layout", JsonLayout.FLEXIBLE)
    return json_rules(text, layout, **{"is_strict": True, **options})


def compile_schema(schema: Any, **options: Any) -> OutputConstraint:
    return GRAMMARS.compile(schema_rules(schema, **options).text)


def accepts(constraint: OutputConstraint, text: str) -> bool:
    """Return True if the text is a complete output."""
    return constraint.is_fulfilled(text.encode())


def random_output(
    constraint: OutputConstraint, choose: random.Random, max_tokens: int = 600
) -> str | None:
    """Return an output chosen at random among all that are allowed, or None if it does not end."""
    matcher = constraint.matcher()
    written = bytearray()
    for _ in range(max_tokens):
        token_id = choose_token(choose, allowed(matcher))
        if token_id == EOS:
            assert constraint.failure is None, (constraint.failure, bytes(written))
            return written.decode()
        matcher.advance(token_id)
        written.append(token_id)
    return None


def load_exact(text: str) -> Any:
    """Parse JSON without rounding its numbers."""
    return json.loads(text, parse_float=Decimal)
