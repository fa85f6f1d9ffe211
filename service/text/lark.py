"""Grammars put together, in llguidance's notation: Lark rules."""

import json
import re
from collections.abc import Callable, Mapping

from llguidance import LLMatcher

# Any text at all, as a terminal; control tokens are not text.
TEXT = "TEXT: /(?s:.*)/"

_ASCII = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}

ControlTokens = Callable[[str], int | None]


def literal(text: str) -> str:
    """The text itself, as a rule's part."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def marked(text: str, markers: tuple[str, ...], control_token_id: ControlTokens) -> str:
    """As `literal`, with those of `markers` that are control tokens as such."""
    if not markers:
        return literal(text)
    pieces = re.split(f"({'|'.join(map(re.escape, markers))})", text)
    parts = []
    for piece in pieces:
        token_id = control_token_id(piece) if piece in markers else None
        if token_id is not None:
            parts.append(f"<[{token_id}]>")
        elif piece:
            parts.append(literal(piece))
    return " ".join(parts)


def until(rule: str, marker: str, control_token_id: ControlTokens) -> str:
    """Rules by which `rule` is any text up to the first `marker`, and the marker."""
    token_id = control_token_id(marker)
    if token_id is not None:
        return f"{rule}: TEXT <[{token_id}]>"
    return f"{rule}[lazy]: TEXT {literal(marker)}"


def regex_rules(regex: str) -> str:
    r"""Rules by which `start` is what the expression matches as a whole.

    Digits and words are those of ASCII, as in the patterns of JSON Schema: llguidance's `\d` and
    `\w` alone would have a model fill a date with digits of any script.
    """
    plain = re.sub(
        r"\\(.)", lambda escape: _ASCII.get(escape[1], escape[0]), regex, flags=re.DOTALL
    )
    rules: str = json.loads(LLMatcher.grammar_from_regex(plain))["grammars"][0]["lark_grammar"]
    return rules


def choice_rules(choices: tuple[str, ...]) -> str:
    """Rules by which `start` is one of the strings; a terminal, which masks are quick for."""
    return f"start: CHOICE\nCHOICE: {' | '.join(map(literal, choices))}"


def composed(start: str, parts: Mapping[str, str]) -> str:
    """Rules and the grammars they name, as `@answer` say, each with a `start` of its own."""
    grammars = [{"name": "main", "lark_grammar": start}]
    grammars += [{"name": name, "lark_grammar": rules} for name, rules in parts.items()]
    return json.dumps({"grammars": grammars})
