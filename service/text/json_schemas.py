"""JSON schemas as callers send them, and the rules of a grammar that they come to."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from service.domain.chat import JsonLayout
from service.errors import InvalidField, UnsupportedField
from service.text.schema.documents import Document
from service.text.schema.errors import SchemaError, UnsupportedKeyword
from service.text.schema.rules import JsonRules, json_rules

_MAX_KEPT = 4_194_304  # characters, of schemas and their rules
_MAX_LOGGED = 20  # keywords of one schema

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A schema that an answer, or the arguments of a call, must follow.

    `field` is where the request has it. A schema that is not strict is followed as far as a grammar
    can. Arguments are an object without properties that the schema does not declare.
    """

    text: str
    field: str
    layout: JsonLayout
    is_strict: bool = False
    is_arguments: bool = False

    def rules(self) -> str:
        """Rules by which `start` is JSON that follows the schema. Long work where they are new.

        Raises:
            InvalidField: the schema is malformed, or nothing fulfils it. The error's field is that
                of the keyword.
            UnsupportedField: it is strict, and a grammar cannot enforce one of its keywords.
        """
        found = _kept.get(self)
        if found is None:
            found = self._read()
            _kept.put(self, found)
        if isinstance(found, UnsupportedKeyword):
            raise UnsupportedField(f"{self.field}{found.path}", str(found))
        if isinstance(found, SchemaError):
            raise InvalidField(f"{self.field}{found.path}", str(found))
        return found.text

    def is_known(self) -> bool:
        """Whether `rules` returns, or raises, at once."""
        return _kept.get(self) is not None

    def _read(self) -> JsonRules | SchemaError:
        try:
            rules = json_rules(
                self.text, self.layout, is_strict=self.is_strict, is_arguments=self.is_arguments
            )
        except SchemaError as error:
            return error.with_traceback(None)
        if rules.unenforced:
            _log.info(
                "schema_weakened",
                field=self.field,
                keywords=[each.path for each in rules.unenforced[:_MAX_LOGGED]],
                num_keywords=len(rules.unenforced),
            )
        return rules


def check_parameters(text: str, field: str) -> None:
    """Check that a text is a schema document of objects. Its keywords are not looked at.

    Raises:
        InvalidField
    """
    try:
        root = Document(text).root
    except SchemaError as error:
        raise InvalidField(f"{field}{error.path}", str(error)) from error
    types = root.get("type", "object") if isinstance(root, dict) else root and "object"
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise InvalidField(field, "A function's parameters are an object.")


class _Kept:
    """What schemas came to: those that were asked for last, up to a number of characters."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._length = 0
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[object, ...], JsonRules | SchemaError] = OrderedDict()

    def get(self, schema: JsonSchema) -> JsonRules | SchemaError | None:
        key = _key(schema)
        with self._lock:
            found = self._found.get(key)
            if found is not None:
                self._found.move_to_end(key)
            return found

    def put(self, schema: JsonSchema, found: JsonRules | SchemaError) -> None:
        key = _key(schema)
        with self._lock:
            if key in self._found:
                return
            self._found[key] = found
            self._length += _length(key, found)
            while self._length > self._max_length:
                self._length -= _length(*self._found.popitem(last=False))


def _key(schema: JsonSchema) -> tuple[object, ...]:
    return schema.text, schema.layout, schema.is_strict, schema.is_arguments


def _length(key: tuple[object, ...], found: JsonRules | SchemaError) -> int:
    length = len(str(key[0]))
    return length + (len(found.text) if isinstance(found, JsonRules) else 1_000)


_kept = _Kept(_MAX_KEPT)
