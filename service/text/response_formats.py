"""Response formats other than JSON schemas, as rules of a grammar."""

import json
import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from service.domain.chat import JsonLayout, ResponseFormat, ResponseFormatKind
from service.errors import InvalidField, MissingField
from service.text import lark
from service.text.json_schemas import JsonSchema

MAX_REGEX_LENGTH = 8_192  # characters
MAX_RULES_LENGTH = 16_384  # characters
MAX_CHOICE_STRINGS = 1_000
MAX_CHOICES_LENGTH = 65_536  # total number of characters of all choices

# All parts of a grammar's intersections are computed together: 200 took 490 MB to compile.
_MAX_INTERSECTIONS = 16
# Matches strings, regexes and comments of a Lark grammar, and `%json` and `&` outside of them.
_LARK_TEXT = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|#[^\n]*|/(?:[^/\\\n]|\\.)+/|%json\b|&')


def text_rules(wanted: ResponseFormat, layout: JsonLayout) -> tuple[str, dict[str, str]]:
    """Return rules in which `start` is the text that a regex, a grammar or choices allow.

    Returns:
        The rules, and the grammars that they refer to by name.

    Raises:
        InvalidField: The format is invalid. Some errors are found only at compilation.
    """
    field = wanted.field
    match wanted.kind:
        case ResponseFormatKind.REGEX:
            _check_length(wanted.text, MAX_REGEX_LENGTH, field)
            return lark.regex_rules(wanted.text), {}
        case ResponseFormatKind.GRAMMAR:
            _check_length(wanted.text, MAX_RULES_LENGTH, field)
            return _with_schemas(_lark_rules(wanted.text, field), field, layout)
    _check_choices(wanted.choices, field)
    return lark.choice_rules(wanted.choices), {}


def _with_schemas(text: str, field: str, layout: JsonLayout) -> tuple[str, dict[str, str]]:
    """Replace each `%json {...}` in a Lark grammar by a reference to the grammar of the schema."""
    parts: dict[str, str] = {}
    written, start, num_intersections = "", 0, 0
    for match in _LARK_TEXT.finditer(text):
        num_intersections += match[0] == "&"
        if match[0] != "%json" or match.start() < start:
            continue
        begin = re.compile(r"\s*").match(text, match.end())
        try:
            _, end = json.JSONDecoder().raw_decode(text, begin.end() if begin else match.end())
        except (ValueError, RecursionError) as error:
            raise InvalidField(
                field, f"A schema after %json is not valid JSON: {error}."
            ) from error
        name = f"json_{len(parts)}"
        schema = JsonSchema(text[match.end() : end], field, layout, is_strict=True)
        parts[name] = schema.rules()
        written += f"{text[start : match.start()]} @{name} "
        start = end
    if num_intersections > _MAX_INTERSECTIONS:
        raise InvalidField(
            field, f"A grammar may have at most {_MAX_INTERSECTIONS} intersections (&)."
        )
    return written + text[start:], parts


def _lark_rules(text: str, field: str) -> str:
    """Return a grammar as Lark. GBNF, which has `::=` after rule names, is converted."""
    if not re.search(r"^[ \t]*[\w-]+[ \t]*::=", text, re.MULTILINE):
        return text
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # the converter raises errors of any type
        raise InvalidField(field, f"The grammar is invalid: {str(error)[:200]}") from error


def _check_length(text: str, max_length: int, field: str) -> None:
    if not text:
        raise MissingField(field)
    if len(text) > max_length:
        raise InvalidField(field, f"The text may have at most {max_length} characters.")


def _check_choices(choices: tuple[str, ...], field: str) -> None:
    if not choices:
        raise InvalidField(field, "At least one choice is required.")
    if len(choices) > MAX_CHOICE_STRINGS:
        raise InvalidField(field, f"At most {MAX_CHOICE_STRINGS} choices are allowed.")
    if sum(map(len, choices)) > MAX_CHOICES_LENGTH:
        raise InvalidField(
            field, f"The choices may have at most {MAX_CHOICES_LENGTH} characters in total."
        )
    for i, choice in enumerate(choices):
        if not choice:
            raise InvalidField(f"{field}[{i}]", "A choice must have at least one character.")
