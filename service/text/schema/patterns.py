"""Regular expressions of JSON Schema (ECMA-262) as terminals of a grammar, over JSON strings.

A terminal matches a string as JSON writes it, with its quotes. Every string has only one form: a
character is escaped only if it must be, in the short form if there is one. So terminals can be
combined with `&` (both match) and `~` (does not match).
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from service.text.schema.pattern_syntax import (
    Anchor,
    CharClass,
    Choice,
    Concat,
    LookAround,
    Node,
    Repeat,
    UnsupportedPattern,
    parse,
)

_SPECIAL = (*map(chr, range(0x20)), '"', "\\")  # the characters that a JSON string must escape
_SHORT = {"\b": "b", "\t": "t", "\n": "n", "\f": "f", "\r": "r", '"': '"', "\\": "\\\\"}
_PLAIN = r'[^"\\\x00-\x1f]'
# One character of a string, as JSON writes it.
CHARACTER = rf'(?:{_PLAIN}|\\["\\bfnrt]|\\u00(?:0[0-7be-f]|1[0-9a-f]))'
STRING = f'/"{CHARACTER}*"/'

_MAX_VARIANTS = 64


@dataclass(frozen=True, slots=True)
class _Variant:
    """A way to match: nodes without anchors.

    Attributes:
        has_start: The match begins at the start of the string.
        has_end: The match ends at the end of the string.
    """

    nodes: tuple[Node, ...] = ()
    has_start: bool = False
    has_end: bool = False

    def is_empty(self) -> bool:
        return all(map(_matches_nothing, self.nodes))


def terminal(pattern: str, *, is_negated: bool = False) -> str:
    r"""Return the terminal of the strings that contain a match of the pattern.

    `\d`, `\w`, `\s` and their complements mean different sets in ECMA-262, Python and Rust. The
    terminal matches strings that match in all of them. If `is_negated`, it matches strings that
    match in any of them, for use with `~`.

    Raises:
        InvalidPattern: The pattern is not a regular expression.
        UnsupportedPattern: A part of it is not supported.
    """
    node = parse(pattern, is_wide=is_negated)
    return _either(_variant_terminal(variant) for variant in _variants(node, at_start=True))


def lengths(least: int, most: int | None) -> str:
    """Return the terminal of the strings with `least` to `most` characters (code points)."""
    return f'/"{CHARACTER}{{{least},{"" if most is None else most}}}"/'


def matching(regex: str) -> str:
    """Return the terminal of the strings that match a regex as a whole.

    The regex must be one of ours: it must not match a character that JSON escapes.
    """
    return f'/"(?:{regex})"/'


def _variants(node: Node, *, at_start: bool) -> list[_Variant]:  # noqa: PLR0911  # one for each kind
    """Return the ways to match a node, with anchors moved out of the nodes.

    Args:
        at_start: True if the node may begin at the start of the string.
    """
    if not _has_anchor(node):
        return [_Variant((node,))]
    match node:
        case Anchor(is_start=True):
            return [_Variant(has_start=True)] if at_start else []
        case Anchor():
            return [_Variant(has_end=True)]
        case LookAround():
            return [_Variant((node,))]
        case Choice(nodes):
            return [variant for each in nodes for variant in _variants(each, at_start=at_start)]
        case Repeat(inner, least, most) if most == 1:
            empty = [_Variant()] if least == 0 else []
            return empty + _variants(inner, at_start=at_start)
        case Concat(nodes):
            found = [_Variant()]
            for each in nodes:
                found = [
                    joined
                    for before in found
                    for after in _variants(each, at_start=at_start and before.is_empty())
                    if (joined := _joined(before, after)) is not None
                ]
                if len(found) > _MAX_VARIANTS:
                    raise UnsupportedPattern("so many anchors in alternatives")
            return found
    raise UnsupportedPattern("an anchor or a look-around in a repetition")


def _joined(before: _Variant, after: _Variant) -> _Variant | None:
    """Return one variant followed by another, or None if they cannot match together."""
    if before.has_end:  # only the empty string can follow the end
        if not all(map(_is_nullable, after.nodes)):
            return None
        after = _Variant((), after.has_start, True)
    if after.has_start:  # only the empty string can precede the start
        if not all(map(_is_nullable, before.nodes)):
            return None
        before = _Variant(tuple(n for n in before.nodes if isinstance(n, LookAround)), True)
    return _Variant(
        before.nodes + after.nodes,
        before.has_start or after.has_start,
        before.has_end or after.has_end,
    )


def _has_anchor(node: Node) -> bool:
    match node:
        case Anchor() | LookAround():
            return True
        case Concat(nodes) | Choice(nodes):
            return any(map(_has_anchor, nodes))
        case Repeat(inner):
            return _has_anchor(inner)
    return False


def _is_nullable(node: Node) -> bool:
    match node:
        case Concat(nodes):
            return all(map(_is_nullable, nodes))
        case Choice(nodes):
            return any(map(_is_nullable, nodes))
        case Repeat(inner, least):
            return least == 0 or _is_nullable(inner)
    return isinstance(node, Anchor | LookAround)


def _matches_nothing(node: Node) -> bool:
    """Return True if the node matches only the empty string."""
    match node:
        case Concat(nodes) | Choice(nodes):
            return all(map(_matches_nothing, nodes))
        case Repeat(inner, _, most):
            return most == 0 or _matches_nothing(inner)
    return isinstance(node, Anchor | LookAround)


def _variant_terminal(variant: _Variant) -> str:
    """Return the terminal of one variant.

    It is composed from the end, because a look-ahead applies to all of the text after it.
    """
    free = f"{CHARACTER}*"
    rest = '"' if variant.has_end else f'{free}"'
    expression = ""  # the terminal after `rest`, if it cannot be a regex
    for index in reversed(range(len(variant.nodes))):
        node = variant.nodes[index]
        if not isinstance(node, LookAround):
            rest = _regex(node) + rest
            continue
        if not node.is_ahead:
            raise UnsupportedPattern(node.text)
        is_first = variant.has_start and all(map(_matches_nothing, variant.nodes[:index]))
        looked = _either(
            f'/{_regex(Concat(seen.nodes))}{"" if seen.has_end else free}"/'
            for seen in _plain_variants(node, at_start=is_first)
        )
        expression = f"({_literal(rest)} {expression}) & {'~' if node.is_negated else ''}({looked})"
        rest = ""
    start = '"' if variant.has_start else f'"{free}'
    if not expression:
        return _literal(start + rest)
    return f"{_literal(start + rest)} ({expression})"


def _plain_variants(look: LookAround, *, at_start: bool) -> Iterator[_Variant]:
    for variant in _variants(look.node, at_start=at_start):
        if any(isinstance(node, LookAround) for node in variant.nodes):
            raise UnsupportedPattern(look.text)
        yield variant


def _literal(regex: str) -> str:
    return f"/{regex}/" if regex else ""


def _either(terminals: Iterable[str]) -> str:
    """Return a terminal that matches the texts that any of these matches.

    If there are none, it matches nothing.
    """
    found = list(dict.fromkeys(terminals))
    if not found:
        return "(/a/ & /b/)"
    return found[0] if len(found) == 1 else f"({' | '.join(f'({one})' for one in found)})"


def _regex(node: Node) -> str:
    """Return the node as a regex over the text of a JSON string."""
    match node:
        case CharClass():
            return _chars_regex(node)
        case Concat(nodes):
            return "".join(map(_regex, nodes))
        case Choice(nodes):
            return f"(?:{'|'.join(map(_regex, nodes))})"
        case Repeat(inner, least, most):
            return f"(?:{_regex(inner)}){{{least},{'' if most is None else most}}}"
    raise UnsupportedPattern("an anchor or a look-around in a repetition")


def _chars_regex(chars: CharClass) -> str:
    items = "".join(_range_text(*bounds) for bounds in chars.ranges) + "".join(chars.properties)
    options = []
    if chars.is_negated:
        options.append(rf'[^{items}"\\\x00-\x1f]')
    elif chars.properties or any(_has_plain(*bounds) for bounds in chars.ranges):
        options.append(rf'[{items}&&[^"\\\x00-\x1f]]')
    escaped = [char for char in _SPECIAL if _contains(chars, char)]
    short = "".join(_SHORT[char] for char in escaped if char in _SHORT)
    if short:
        options.append(rf"\\[{short}]")
    for high in "01":
        low = "".join(
            f"{ord(char):02x}"[1] for char in escaped
            if char not in _SHORT and f"{ord(char):02x}"[0] == high
        )  # fmt: skip
        if low:
            options.append(rf"\\u00{high}[{low}]")
    return f"(?:{'|'.join(options)})" if options else "[a&&b]"


def _contains(chars: CharClass, char: str) -> bool:
    """Return True if a character that JSON escapes, which is ASCII, is in the set."""
    category = unicodedata.category(char)
    is_in = any(low <= char <= high for low, high in chars.ranges) or any(
        category.startswith(name[3:-1])
        for name in chars.properties  # other properties contain no such character
    )
    return is_in != chars.is_negated


def _has_plain(low: str, high: str) -> bool:
    """Return True if a range has a character that JSON does not escape."""
    # At most 33 adjacent characters are escaped, so only the first ones must be checked.
    codes = range(ord(low), min(ord(high), ord(low) + len(_SPECIAL)) + 1)
    return any(chr(code) not in _SPECIAL for code in codes)


def _range_text(low: str, high: str) -> str:
    return f"\\u{{{ord(low):x}}}-\\u{{{ord(high):x}}}"
