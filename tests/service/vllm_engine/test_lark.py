"""Grammars of several parts as a single one."""

import pytest
from llguidance import LLMatcher, LLTokenizer

from service.text import lark
from service.vllm_engine.lark import single_grammar

TOKENIZER = LLTokenizer("byte")


def matches(grammar: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZER, grammar, log_level=0)
    return bool(matcher.consume_tokens(TOKENIZER.tokenize_str(text)) and matcher.is_accepting())


def test_rules_of_one_part_stay_as_they_are() -> None:
    assert single_grammar('start: "@a"') == 'start: "@a"'


@pytest.mark.parametrize(
    ("text", "is_matched"),
    [
        ("@bx}@bb", True),
        ("}x{@bb", True),
        ('{"q@a": 5}x}@bb', True),
        ("}x}@b", False),
        ("@bx}", False),
        ("x", False),
    ],
)
def test_named_grammars_match_the_same_texts(text: str, *, is_matched: bool) -> None:
    schema = '{"type": "object", "properties": {"q@a": {"type": "integer"}}}'
    parts = {"a": 'start: "x" @b /@b{2}/', "b": f'start: %json {schema} | T\nT: "}}" | /[{{]/'}
    grammar = lark.composed('start: "@b" @a | @b @a', parts)
    single = single_grammar(grammar)
    assert single.startswith("start:"), "vLLM takes it for GBNF"
    assert matches(grammar, text) is is_matched
    assert matches(LLMatcher.grammar_from_lark(single), text) is is_matched
