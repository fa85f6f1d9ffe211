"""Converts a grammar to a single text of Lark rules, the form that vLLM passes to llguidance."""

import json
import re
from collections.abc import Mapping

# Strings and regular expressions, in which a name is not a reference; and references.
_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|/(?:\\.|[^/\\])+/|@(?P<name>[\w-]+)')


def single_grammar(grammar: str) -> str:
    """Return a grammar in llguidance's notation as Lark rules, without named grammars.

    Args:
        grammar: Lark rules, or a JSON object whose `grammars` are Lark rules with names. The first
            is the start. A grammar refers to another one as `@name`.
    """
    if not grammar.startswith("{"):
        return grammar
    parts = {part["name"]: part["lark_grammar"] for part in json.loads(grammar)["grammars"]}
    main, *names = parts
    # A rule for each grammar, so that several references need no copies of it.
    rules = [f"{_rule(name)}: {_nested(name, parts)}" for name in names]
    start = _TOKENS.sub(
        lambda token: _rule(token["name"]) if token["name"] else token[0], parts[main]
    )
    return "\n".join([start, *rules])


def _rule(name: str) -> str:
    return f"named_{name}"


def _nested(name: str, parts: Mapping[str, str]) -> str:
    """Return a grammar as an expression. It contains the grammars to which it refers."""
    rules = _TOKENS.sub(
        lambda token: _nested(token["name"], parts) if token["name"] else token[0], parts[name]
    )
    return f"%lark {{\n{rules}\n}}"
