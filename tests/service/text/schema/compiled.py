"""Schemas compiled over bytes, for tests of what the grammars allow."""

import json
import random
from decimal import Decimal
from typing import Any

from service.domain.chat import JsonLayout
from service.domain.grammar import AnswerConstraint
from service.text.grammars import CompiledGrammars
from service.text.schema.rules import JsonRules, json_rules
from service.text.schema.values import dumps
from tests.fakes.grammars import allowed, byte_grammars, choose_token
from tests.fakes.tokenizer import EOS

GRAMMARS: CompiledGrammars = byte_grammars()


def rules(schema: Any, **options: Any) -> JsonRules:
    """The rules of a schema, given as JSON text or as a value; strict unless `options` say not."""
    text = schema if isinstance(schema, str) else dumps(schema)
    layout = options.pop("layout", JsonLayout.FLEXIBLE)
    return json_rules(text, layout, **{"is_strict": True, **options})


def compiled(schema: Any, **options: Any) -> AnswerConstraint:
    return GRAMMARS.compile(rules(schema, **options).text)


def takes(constraint: AnswerConstraint, text: str) -> bool:
    """Whether the text is a whole answer."""
    return constraint.is_fulfilled(text.encode())


def random_answer(
    constraint: AnswerConstraint, choose: random.Random, max_tokens: int = 600
) -> str | None:
    """An answer chosen without any sense among all that are allowed; None if it does not end."""
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


def exact(text: str) -> Any:
    """JSON with its numbers as they are written."""
    return json.loads(text, parse_float=Decimal)
