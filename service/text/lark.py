"""Building blocks of grammars in llguidance's notation: Lark rules."""

import json
import re
from collections.abc import Callable, Mapping

from llguidance import LLMatcher

# The terminal that matches any text. Control tokens are not text.
TEXT = "TEXT: /(?s:.*)/"

_ASCII = {"d": "[0-9]", "D": "[^0-9]", "w": "[0-9A-Za-z_]", "W": "[^0-9A-Za-z_]"}

ControlTokens = Callable[[str], int | None]


def literal(text: str) -> str:
    """Return the part of a rule that matches the text itself."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def marked(text: str, markers: tuple[str, ...], control_token_id: ControlTokens) -> str:
    """Return the part of a rule that matches a text, with control tokens in it as tokens.

    Args:
        markers: Parts of the text that can be control tokens.
    """
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


def text_through_marker(rule: str, marker: str, control_token_id: ControlTokens) -> str:
    """Return rules in which `rule` is any text up to and including the first `marker`."""
    token_id = control_token_id(marker)
    if token_id is not None:
        return f"{rule}: TEXT <[{token_id}]>"
    return f"{rule}[lazy]: TEXT {literal(marker)}"


def regex_rules(regex: str) -> str:
    r"""Return rules in which `start` is a text that the regex matches as a whole.

    `\d` and `\w` match only ASCII, as in the patterns of JSON Schema. With llguidance's own `\d`, a
    model would write a date with digits of any script.
    """
    plain = re.sub(
        r"\\(.)", lambda escape: _ASCII.get(escape[1], escape[0]), regex, flags=re.DOTALL
    )
    rules: str = json.loads(LLMatcher.grammar_from_regex(plain))["grammars"][0]["lark_grammar"]
    return rules


def choice_rules(choices: tuple[str, ...]) -> str:
    """Return rules in which `start` is one of the strings.

    They are one terminal, for which masks are fast.
    """
    return f"start: CHOICE\nCHOICE: {' | '.join(map(literal, choices))}"


def composed(start: str, parts: Mapping[str, str]) -> str:
    """Return a grammar of `start` and of the grammars that it refers to by name, such as `@answer`.

    Each of the other grammars has its own `start`.
    """
    grammars = [{"name": "main", "lark_grammar": start}]
    grammars += [{"name": name, "lark_grammar": rules} for name, rules in parts.items()]
    return json.dumps({"grammars": grammars})
