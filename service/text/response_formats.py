"""The form that an answer must take, as rules of a grammar."""

import re

from llguidance.gbnf_to_lark import gbnf_to_lark

from service.errors import InvalidField, MissingField
from service.text import lark
from service.text.json_schemas import check_cost, check_exact, parse_schema
from service.types import AnswerForm, ResponseFormat

MAX_REGEX_LENGTH = 8_192  # characters
MAX_RULES_LENGTH = 16_384  # characters
MAX_CHOICES = 1_000
MAX_CHOICES_LENGTH = 65_536  # characters, of all together

# Where each stands in the request.
FIELDS = {
    AnswerForm.JSON_OBJECT: "response_format.json_object",
    AnswerForm.JSON_SCHEMA: "response_format.json_schema.schema_json",
    AnswerForm.REGEX: "response_format.regex",
    AnswerForm.GRAMMAR: "response_format.grammar",
    AnswerForm.CHOICE: "response_format.choice.choices",
}


def answer_rules(wanted: ResponseFormat) -> str:
    """Rules by which `start` is the answer.

    Raises:
        InvalidField, or one of its kinds: what can be seen to be wrong before it is compiled.
    """
    field = FIELDS[wanted.form]
    match wanted.form:
        case AnswerForm.JSON_OBJECT:
            return f"start: {lark.json_schema({'type': 'object'})}"
        case AnswerForm.JSON_SCHEMA:
            schema = parse_schema(wanted.text, field)
            check_cost(schema, field)
            check_exact(schema, field)
            return f"start: {lark.json_schema(schema)}"
        case AnswerForm.REGEX:
            _check_length(wanted.text, MAX_REGEX_LENGTH, field)
            return lark.regex_rules(wanted.text)
        case AnswerForm.GRAMMAR:
            _check_length(wanted.text, MAX_RULES_LENGTH, field)
            return _lark_rules(wanted.text, field)
        case AnswerForm.CHOICE:
            _check_choices(wanted.choices, field)
            return lark.choice_rules(wanted.choices)


def _lark_rules(text: str, field: str) -> str:
    """Lark as it is; GBNF, which names its rules with `::=`, as the Lark it comes to."""
    if not re.search(r"^[ \t]*[\w-]+[ \t]*::=", text, re.MULTILINE):
        return text
    try:
        return gbnf_to_lark(text)
    except Exception as error:  # it raises whatever its steps do
        raise InvalidField(field, f"The grammar is invalid: {str(error)[:200]}") from error


def _check_length(text: str, max_length: int, field: str) -> None:
    if not text:
        raise MissingField(field)
    if len(text) > max_length:
        raise InvalidField(field, f"It has at most {max_length} characters.")


def _check_choices(choices: tuple[str, ...], field: str) -> None:
    if not choices:
        raise InvalidField(field, "At least one choice is required.")
    if len(choices) > MAX_CHOICES:
        raise InvalidField(field, f"At most {MAX_CHOICES} choices are taken.")
    if sum(map(len, choices)) > MAX_CHOICES_LENGTH:
        raise InvalidField(field, f"Choices have at most {MAX_CHOICES_LENGTH} characters in all.")
    for i, choice in enumerate(choices):
        if not choice:
            raise InvalidField(f"{field}[{i}]", "A choice has at least one character.")
