"""The syntax of regular expressions of JSON Schema (ECMA-262)."""

import re
from dataclasses import dataclass
from functools import lru_cache

from llguidance import LLMatcher

_MAX_LENGTH = 8_192  # characters
_MAX_LOOKS = 8
_MAX_DEPTH = 50  # maximum depth of nested groups
_MAX_COUNT = 1_000_000  # maximum n of `{n}`; the compiler has its own limits

_LINE_ENDS = ("\n", "\r", "\u2028", "\u2029")
_SPACES = "\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"
_CONTROLS = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "0": "\0"}
_QUANTIFIER = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_PROPERTY = re.compile(r"([pP])\{([A-Za-z_]+)(?:=([A-Za-z_]+))?\}")
_LOOKS = {"(?=": (True, False), "(?!": (True, True), "(?<=": (False, False), "(?<!": (False, True)}
_LONG_CATEGORIES = {
    "Letter": "L", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll", "Titlecase_Letter": "Lt",
    "Modifier_Letter": "Lm", "Other_Letter": "Lo", "Mark": "M", "Nonspacing_Mark": "Mn",
    "Spacing_Mark": "Mc", "Enclosing_Mark": "Me", "Number": "N", "Decimal_Number": "Nd",
    "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P", "Connector_Punctuation": "Pc",
    "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps", "Close_Punctuation": "Pe",
    "Initial_Punctuation": "Pi", "Final_Punctuation": "Pf", "Other_Punctuation": "Po",
    "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc", "Modifier_Symbol": "Sk",
    "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs", "Line_Separator": "Zl",
    "Paragraph_Separator": "Zp", "Other": "C", "Control": "Cc", "Format": "Cf",
}  # fmt: skip
# Only these two scripts have characters that JSON escapes.
_SHARED_SCRIPTS = frozenset({"Common", "Inherited", "Zyyy", "Zinh", "Qaai"})
# These properties have no characters that JSON escapes.
_PLAIN_PROPERTIES = frozenset(
    {
        "Alphabetic", "Alpha", "Lowercase", "Lower", "Uppercase", "Upper", "Ideographic",
        "ID_Start", "ID_Continue", "XID_Start", "XID_Continue", "Hex_Digit", "ASCII_Hex_Digit",
        "Emoji", "Emoji_Component", "Emoji_Modifier", "Emoji_Modifier_Base", "Emoji_Presentation",
        "Extended_Pictographic", "Regional_Indicator", "Variation_Selector",
    }
)  # fmt: skip


class InvalidPattern(Exception):
    """The pattern is not a regular expression."""


class UnsupportedPattern(Exception):
    """A part of the pattern is not supported. The exception's message is that part."""


@dataclass(frozen=True, slots=True)
class CharClass:
    """A character in these ranges or properties, or in none of them if `is_negated`."""

    ranges: tuple[tuple[str, str], ...]
    properties: tuple[str, ...] = ()  # such as `\\p{L}`
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Concat:
    """Nodes that match one after the other."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Nodes of which one matches."""

    nodes: tuple["Node", ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A node that matches `least` to `most` times (None if there is no limit)."""

    node: "Node"
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Anchor:
    """The start or the end of the string."""

    is_start: bool


@dataclass(frozen=True, slots=True)
class LookAround:
    """A look-ahead or look-behind. `text` is its source."""

    node: "Node"
    is_ahead: bool
    is_negated: bool
    text: str


Node = CharClass | Concat | Choice | Repeat | Anchor | LookAround


def parse(pattern: str, *, is_wide: bool) -> Node:
    """Parse a pattern.

    Args:
        is_wide: If True and dialects differ in what a class matches, the largest set is used.

    Raises:
        InvalidPattern: The pattern is not a regular expression.
        UnsupportedPattern: A part of it is not supported.
    """
    if len(pattern) > _MAX_LENGTH:
        raise UnsupportedPattern(f"{pattern[:20]}... of more than {_MAX_LENGTH} characters")
    return _Parser(pattern, is_wide=is_wide).parse()


class _Parser:
    """A parser of one pattern. If `is_wide`, classes are the largest of all dialects."""

    def __init__(self, pattern: str, *, is_wide: bool) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._num_looks = 0
        self._is_wide = is_wide

    def parse(self) -> Node:
        node = self._choice()
        if self._at < len(self._text):
            raise InvalidPattern("it has an unmatched `)`")
        return node

    def _peek(self, text: str) -> bool:
        return self._text.startswith(text, self._at)

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise InvalidPattern("it ends unexpectedly")
        self._at += 1
        return self._text[self._at - 1]

    def _choice(self) -> Node:
        nodes = [self._concat()]
        while self._peek("|"):
            self._at += 1
            nodes.append(self._concat())
        return nodes[0] if len(nodes) == 1 else Choice(tuple(nodes))

    def _concat(self) -> Node:
        nodes: list[Node] = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            nodes.append(self._quantified(self._atom()))
        return nodes[0] if len(nodes) == 1 else Concat(tuple(nodes))

    def _quantified(self, node: Node) -> Node:
        start = self._at
        if self._at >= len(self._text):
            return node
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._text[self._at])
        if bounds is not None:
            self._at += 1
        elif match := _QUANTIFIER.match(self._text, self._at):
            self._at = match.end()
            least = int(match[1])
            most = least if match[2] is None else int(match[3]) if match[3] else None
            if most is not None and most < least:
                raise InvalidPattern(f"the bounds of {match[0]} are in the wrong order")
            if max(least, most or 0) > _MAX_COUNT:
                raise UnsupportedPattern(match[0])
            bounds = least, most
        else:
            return node
        if isinstance(node, Anchor | LookAround) or self._peek("+"):
            raise UnsupportedPattern(self._text[start : self._at + 1])
        if self._peek("?"):  # a lazy quantifier matches the same strings
            self._at += 1
        if self._at < len(self._text) and self._text[self._at] in "*+?":
            raise InvalidPattern(f"{self._text[start : self._at + 1]} follows another quantifier")
        return Repeat(node, *bounds)

    def _atom(self) -> Node:
        char = self._take()
        match char:
            case "^" | "$":
                return Anchor(char == "^")
            case ".":
                return CharClass(tuple((end, end) for end in _LINE_ENDS), is_negated=True)
            case "[":
                return self._class()
            case "(":
                return self._group()
            case "\\":
                return self._escape()
            case "*" | "+" | "?":
                raise InvalidPattern(f"{char} has nothing to repeat")
        return CharClass(((char, char),))

    def _group(self) -> Node:
        start = self._at - 1
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UnsupportedPattern(f"more than {_MAX_DEPTH} nested groups")
        look = next((opening for opening in _LOOKS if self._text.startswith(opening, start)), None)
        was_wide = self._is_wide
        if look is not None:
            self._at = start + len(look)
            self._is_wide ^= _LOOKS[look][1]
        elif self._peek("?"):
            named = re.compile(r"\?(?::|P?<[^>=!]+>)").match(self._text, self._at)
            if named is None:
                raise UnsupportedPattern(self._text[start : start + 4])
            self._at = named.end()
        node = self._choice()
        if self._at >= len(self._text):
            raise InvalidPattern("it has an unmatched `(`")
        self._at += 1
        self._depth -= 1
        self._is_wide = was_wide
        if look is None:
            return node
        self._num_looks += 1
        if self._num_looks > _MAX_LOOKS:
            raise UnsupportedPattern(self._text[start : self._at])
        return LookAround(node, *_LOOKS[look], self._text[start : self._at])

    def _escape(self) -> Node:
        start = self._at - 1
        char = self._take()
        if char in "AzZ":
            return Anchor(char == "A")
        if char in "dDwWsS":
            return _kind(char, is_wide=self._is_wide)
        if char in "pP":
            return self._property(start)
        if char in "bBk" or char in "123456789":
            raise UnsupportedPattern(self._text[start : self._at])
        char = self._character(char, start)
        return CharClass(((char, char),))

    def _property(self, start: int) -> CharClass:
        match = _PROPERTY.match(self._text, start + 1)
        if match is None:
            raise UnsupportedPattern(self._text[start : start + 3])
        self._at = match.end()
        kind, name = (match[2], match[3]) if match[3] else ("", match[2])
        name = _LONG_CATEGORIES.get(name, name)
        is_script = kind in ("Script", "sc", "Script_Extensions", "scx")
        is_category = name in _LONG_CATEGORIES.values()
        if (kind in ("General_Category", "gc") or not kind) and is_category:
            written = rf"\p{{{name}}}"
        elif is_script and name not in _SHARED_SCRIPTS:
            written = rf"\p{{Script={name}}}"
        elif not kind and name in _PLAIN_PROPERTIES:
            written = rf"\p{{{name}}}"
        elif not kind and name == "Any":
            return CharClass((), is_negated=match[1] == "p")
        else:
            written = ""
        if not written or not _is_known(written):
            raise UnsupportedPattern(f"\\{match[0]}")
        return CharClass((), (written,), match[1] == "P")

    def _character(self, char: str, start: int) -> str:
        """Return the character of an escape that begins at `start` and continues with `char`."""
        if char in _CONTROLS:
            return _CONTROLS[char]
        rest = self._text[self._at :]
        code = None
        if char == "x":
            code = re.match(r"([0-9a-fA-F]{2})", rest)
        elif char == "u":
            code = re.match(r"([0-9a-fA-F]{4})", rest) or re.match(r"\{([0-9a-fA-F]{1,6})\}", rest)
        elif char == "c":
            letter = re.match(r"[a-zA-Z]", rest)
            if letter is not None:
                self._at += 1
                return chr(ord(letter[0]) % 32)
        if code is not None:
            self._at += code.end()
            return self._code_point(int(code[1], 16), start)
        if char.isascii() and char.isalnum():
            raise UnsupportedPattern(self._text[start : self._at])
        return char

    def _code_point(self, number: int, start: int) -> str:
        low = re.compile(r"\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE).match(self._text, self._at)
        if 0xD800 <= number < 0xDC00 and low is not None:
            self._at = low.end()
            number = 0x10000 + (number - 0xD800) * 0x400 + int(low[1], 16) - 0xDC00
        if number > 0x10FFFF or 0xD800 <= number < 0xE000:
            raise UnsupportedPattern(self._text[start : self._at])
        return chr(number)

    def _class(self) -> Node:
        is_negated = self._peek("^")
        self._at += is_negated
        is_wide = self._is_wide ^ is_negated
        ranges: list[tuple[str, str]] = []
        properties: list[str] = []
        inner: list[CharClass] = []
        while not self._peek("]"):
            first = self._member(is_wide=is_wide)
            if self._peek("-") and not self._peek("-]") and isinstance(first, str):
                self._at += 1
                last = self._member(is_wide=is_wide)
                if isinstance(last, str):
                    if last < first:
                        raise InvalidPattern(f"the bounds of {first}-{last} are in the wrong order")
                    ranges.append((first, last))
                    continue
                ranges.append(("-", "-"))
                ranges.append((first, first))
                first = last
            if isinstance(first, str):
                ranges.append((first, first))
            elif first.is_negated:
                inner.append(first)
            else:
                ranges += first.ranges
                properties += first.properties
        self._at += 1
        if not inner:
            return CharClass(tuple(ranges), tuple(properties), is_negated)
        if is_negated:
            if len(inner) == 1 and not ranges and not properties:
                return CharClass(inner[0].ranges, inner[0].properties)
            raise UnsupportedPattern("[^...] with a negated class in it")
        return Choice((CharClass(tuple(ranges), tuple(properties)), *inner))

    def _member(self, *, is_wide: bool) -> "str | CharClass":
        start = self._at
        char = self._take()
        if char != "\\":
            return char
        char = self._take()
        if char in "dDwWsS":
            return _kind(char, is_wide=is_wide)
        if char in "pP":
            return self._property(start)
        return "\b" if char == "b" else self._character(char, start)


@lru_cache(maxsize=256)
def _is_known(unicode_property: str) -> bool:
    return not LLMatcher.validate_grammar(f"start: /{unicode_property}/")


def _kind(char: str, *, is_wide: bool) -> CharClass:
    r"""Return the set of `\d`, `\w` or `\s`, or its complement for a capital.

    If `is_wide`, the result is the largest set of all dialects. For a complement, this is the
    complement of the smallest set.
    """
    is_negated = char.isupper()
    is_wide ^= is_negated
    properties: tuple[str, ...] = ()
    match char.lower():
        case "d":
            ranges = [("0", "9")]
            properties = (r"\p{Nd}",)
        case "w":
            ranges = [("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z")]
            properties = (r"\p{L}", r"\p{M}", r"\p{N}", r"\p{Pc}")
        case _:
            ranges = [(space, space) for space in _SPACES] + [("\u2000", "\u200a")]
            if is_wide:
                ranges += [("\x1c", "\x1f"), ("\x85", "\x85")]
    return CharClass(tuple(ranges), properties if is_wide else (), is_negated)
