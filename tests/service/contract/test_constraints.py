"""Outputs that a grammar constrains."""

import json
from typing import Any

import pytest

from service.domain.engine import Engine, FinishReason
from service.domain.grammar import OutputConstraint
from service.text.grammars import CompiledGrammars
from service.text.hf_tokenizer import HfTokenizer
from tests.service.contract.promises import (
    END,
    Definition,
    collect,
    finish_reason,
    make_request,
    skip_unless_served,
    tokens,
)

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "ids": {"type": "array", "items": {"enum": [1, 20]}, "maxItems": 3},
    },
    "required": ["name", "ids"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
CHOICE = 'start: "Hello" | "world"'


@pytest.fixture(autouse=True)
def _served(engine: Engine) -> None:
    skip_unless_served(engine, "constraint")


def options(constraint: OutputConstraint, **others: Any) -> dict[str, Any]:
    """Return the options of a request that ends with the end token, as every constraint needs."""
    stops = frozenset({END})
    return {"constraint": constraint, "stop_token_ids": stops, "max_tokens": 100} | others


async def text_of(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, **chosen: Any
) -> str:
    """Return the output of a request, after checking that it is a whole one of its grammar."""
    request = make_request(**chosen)
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert finish_reason(outputs) is FinishReason.STOP
    *output, end = tokens(outputs)
    assert end == END
    assert chosen["constraint"].is_fulfilled(output)
    return tokenizer.decode(output, skip_special_tokens=False)


async def test_output_is_one_of_a_choice(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, grammars: CompiledGrammars
) -> None:
    constraint = grammars.compile(CHOICE)
    text = await text_of(engine, definition, tokenizer, **options(constraint))
    assert text in {"Hello", "world"}


@pytest.mark.parametrize("seed", range(3))
async def test_output_follows_a_json_schema(
    engine: Engine,
    definition: Definition,
    tokenizer: HfTokenizer,
    grammars: CompiledGrammars,
    seed: int,
) -> None:
    constraint = grammars.compile(f"start: %json {json.dumps(SCHEMA)}")
    sampled = options(constraint, temperature=1.0, seed=seed)
    value = json.loads(await text_of(engine, definition, tokenizer, **sampled))
    assert set(value) == {"name", "ids"}
    assert set(value["ids"]) <= {1, 20}


async def test_special_token_of_a_grammar_is_generated(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, grammars: CompiledGrammars
) -> None:
    token_id = grammars.control_token_id("<|im_start|>")
    constraint = grammars.compile(f'start: "Hello" <[{token_id}]> "world"')
    text = await text_of(engine, definition, tokenizer, **options(constraint))
    assert text == "Hello<|im_start|>world"


async def test_constraint_after_a_text_allows_the_rest(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, grammars: CompiledGrammars
) -> None:
    if not engine.capabilities.continues_constraints:
        pytest.skip("the engine serves only whole grammars")
    constraint = grammars.compile(CHOICE).after("wor")
    text = await text_of(engine, definition, tokenizer, **options(constraint))
    assert text == "ld"


async def test_each_sequence_has_its_own_state(
    engine: Engine, definition: Definition, grammars: CompiledGrammars
) -> None:
    constraint = grammars.compile('start: /[a-z]+/ " end"')
    request = make_request(**options(constraint, temperature=1.0, seed=2, n=4, max_tokens=30))
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert len({tuple(tokens(outputs, index)) for index in range(4)}) == 4


async def test_output_ends_at_max_tokens_if_the_grammar_does_not_end(
    engine: Engine, definition: Definition, grammars: CompiledGrammars
) -> None:
    request = make_request(**options(grammars.compile("start: /[0-9]{500}/"), max_tokens=8))
    outputs = await collect(engine, request)
    definition.check(request, outputs)
    assert finish_reason(outputs) is FinishReason.LENGTH


async def test_constraint_holds_together_with_other_options(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, grammars: CompiledGrammars
) -> None:
    names = ("logit_bias", "bad_token_sequences", "presence_penalty")
    skip_unless_served(engine, *names)
    [first] = tokenizer.encode("a", add_special_tokens=False)
    constraint = grammars.compile("start: /[a-c]{6}/")
    chosen = options(
        constraint,
        logit_bias={first: 50.0, 299: 100.0},
        bad_token_sequences=((first, first),),
        presence_penalty=0.5,
        num_logprobs=None if engine.capabilities.masks_logprobs else 2,
    )
    text = await text_of(engine, definition, tokenizer, **chosen)
    assert text.count("a") == 3
    assert "aa" not in text


async def test_requests_share_a_grammar(
    engine: Engine, definition: Definition, tokenizer: HfTokenizer, grammars: CompiledGrammars
) -> None:
    for _ in range(2):
        constraint = grammars.compile(CHOICE)
        first = await text_of(engine, definition, tokenizer, **options(constraint))
        again = await text_of(engine, definition, tokenizer, **options(constraint))
        assert first == again
