import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidGrammar
from service.text.schema import patterns
from service.text.schema.json_values import quoted
from service.text.schema.pattern_syntax import InvalidPattern, UnsupportedPattern
from tests.service.text.schema.grammar_checks import GRAMMARS, accepts

TEXTS = (
    "", "a", "ab", "abc", "foo", "barfoo", "foobar", '"', "\\", "a\nb", 'x"y', "\x01", "1", "12",
    "a1", "A1a", "-", "+1.5", "0.10", ".", "aaaa", "Abcdefg1", "a b", "\t", "aba", "/", "a]b", "{",
)  # fmt: skip
PATTERNS = (
    "^[a-c]{2,4}$", "^x", "y+", "^(yes|no)$", r"^\d{3}-\d{2}$", ".", "^.$", "^[^a]$",
    r"[^\x00-\x1f]",
    '"', r"^\\$", r"^\w+$", r"^\S+$", r"\s", "^(a|^b)", r"(^|\s)foo(\s|$)", "a|^b$", "", "^$", "^",
    "$", r"^(?=.*[A-Z])(?=.*\d).{8,}$", "^(?!foo)[^b]*$", r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$",
    "foo(?=bar)", "foo(?!bar)", "(?=a)ab", "a(?!b)", "^(?:(?=a)a|b)$", "a{2", "a{2}", "a{1,}",
    "^a{0,2}b?$", r"^[\w.-]+$", r"^[^\s@]+$", r"^\/$", r"^[\s\S]*$", r"^[^\W]+$", r"^\D+$",
    r"^[\d\-x]+$", "a*?b", "(?P<name>a)b", "(?<name>a)b", r"\x61\u0062", r"^[\]a]+b$", "^[a-]+$",
    "(a$|b)", "^(a|b$)", "(a|$)", "^{$", r"^\cA$", r"^[\b]?$", r"^\0?$", "x*",
)  # fmt: skip


def matched(pattern: str) -> list[str]:
    try:
        constraint = GRAMMARS.compile(f"start: T\nT: {patterns.terminal(pattern)}")
    except InvalidGrammar:
        return []  # the terminal matches nothing
    return [text for text in TEXTS if accepts(constraint, quoted(text))]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_terminal_matches_the_same_strings_as_the_pattern(pattern: str) -> None:
    in_python = pattern.replace("(?<name>", "(?P<name>").replace(r"\cA", r"\x01")
    in_python = in_python.replace("$", r"\Z")  # in Python, $ also matches before a final newline
    expected = [text for text in TEXTS if re.search(in_python, text, re.ASCII)]
    assert matched(pattern) == expected


def test_class_that_differs_between_dialects_matches_their_intersection() -> None:
    for pattern, text in ((r"^\W$", "é"), (r"^\d$", "٣"), (r"^\w$", "é"), (r"^[^\w]$", "é")):
        constraint = GRAMMARS.compile(f"start: T\nT: {patterns.terminal(pattern)}")
        assert not accepts(constraint, quoted(text))
    wide = patterns.terminal(r"^\d$", is_negated=True)
    assert accepts(GRAMMARS.compile(f"start: T\nT: {wide}"), quoted("٣"))


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [
        (r"^\p{L}+$", "é日a", "1"),
        (r"^\P{L}+$", '1"\\\n', "a"),
        (r"^\p{Script=Greek}+$", "αβ", "a"),
        (r"^\p{Letter}\p{gc=Nd}$", "é1", "1é"),
        (r"^[\p{Lu}\d]+$", "A1", "a"),
        (r"^[^\p{L}]$", "1", "a"),
        (r"^\p{Emoji}$", "😀", "a"),
        (r"^\ud83d\ude00$", "😀", "x"),
        (r"^\u{1F600}$", "😀", "x"),
        ("^.{1,2}$", "😀😀", "😀😀😀"),
    ],
)
def test_pattern_matches_unicode_by_code_points(pattern: str, text: str, other: str) -> None:
    constraint = GRAMMARS.compile(f"start: T\nT: {patterns.terminal(pattern)}")
    assert accepts(constraint, quoted(text))
    assert not accepts(constraint, quoted(other))


@pytest.mark.parametrize(
    ("pattern", "part"),
    [
        (r"\bfoo", r"\b"),
        (r"(a)\1", r"\1"),
        ("(?<=a)b", "(?<=a)"),
        ("(?i)abc", "(?i)"),
        ("(?>a)", "(?>a"),
        (r"\p{Script=Nowhere}", r"\p{Script=Nowhere}"),
        (r"\p{Common}", r"\p{Common}"),
        (r"\a", r"\a"),
        ("a++", "++"),
        ("a{2000000}", "{2000000}"),
        ("(^a)*", "an anchor or a look-around in a repetition"),
        ("(" * 60 + "a" + ")" * 60, "more than 50 nested groups"),
        ("^" + "(?=a)" * 9, "(?=a)"),
    ],
)
def test_unsupported_part_is_in_the_error(pattern: str, part: str) -> None:
    with pytest.raises(UnsupportedPattern) as caught:
        patterns.terminal(pattern)
    assert str(caught.value) == part


@pytest.mark.parametrize("pattern", ["(", ")", "[a", "a{3,2}", "*a", "a**", "[b-a]", "\\", "(?:a"])
def test_malformed_pattern_is_invalid(pattern: str) -> None:
    with pytest.raises(InvalidPattern):
        patterns.terminal(pattern)


@given(st.text(alphabet=r"ab01.^$|()[]{}?*+\-,:=!dDwWsSpPux\"<", max_size=12))
def test_any_text_is_a_pattern_or_raises_our_error(pattern: str) -> None:
    try:
        terminal = patterns.terminal(pattern)
    except (InvalidPattern, UnsupportedPattern):
        return
    try:
        GRAMMARS.compile(f"start: T\nT: {terminal}")
    except InvalidGrammar as error:
        assert str(error) == "no output can match it"  # noqa: PT017  # any other is a bug


@pytest.mark.parametrize(("least", "most"), [(0, 0), (0, 2), (2, None), (1, 1)])
def test_length_limit_counts_code_points(least: int, most: int | None) -> None:
    constraint = GRAMMARS.compile(f"start: T\nT: {patterns.lengths(least, most)}")
    for text in ("", "a", "😀", '"', "\n\x01", "aé", "abc"):
        expected = least <= len(text) and (most is None or len(text) <= most)
        assert accepts(constraint, quoted(text)) == expected
