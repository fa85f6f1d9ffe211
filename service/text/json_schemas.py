"""JSON schemas from clients, translated to grammar rules once and cached."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import structlog

from service.domain.chat import JsonLayout
from service.errors import InvalidField, UnsupportedField
from service.text.schema.documents import Document
from service.text.schema.errors import SchemaError, UnsupportedKeyword
from service.text.schema.rules import JsonRules, json_rules

_MAX_CACHED_LENGTH = 4_194_304  # total number of characters of schemas and their rules
_MAX_LOGGED_KEYWORDS = 20  # maximum number for one schema

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """A JSON schema for an output, or for the arguments of a tool call.

    Attributes:
        text: The schema, as JSON.
        field: The schema's field in the request.
        layout: The white space that the JSON may contain.
        is_strict: If True, the schema is rejected if a keyword cannot be enforced. Otherwise such
            keywords are ignored.
        is_arguments: If True, the value is an object with only the properties that the schema
            declares.
    """

    text: str
    field: str
    layout: JsonLayout
    is_strict: bool = False
    is_arguments: bool = False

    def rules(self) -> str:
        """Return rules in which `start` is JSON that matches the schema.

        This takes long if the schema is not in the cache.

        Raises:
            InvalidField: The schema is malformed, or no value matches it. The error names the
                keyword's field.
            UnsupportedField: The schema is strict, and a grammar cannot enforce one of its
                keywords.
        """
        found = _cache.get(self)
        if found is None:
            found = self._read()
            _cache.put(self, found)
        if isinstance(found, UnsupportedKeyword):
            raise UnsupportedField(f"{self.field}{found.path}", str(found))
        if isinstance(found, SchemaError):
            raise InvalidField(f"{self.field}{found.path}", str(found))
        return found.text

    def is_known(self) -> bool:
        """Return True if the schema is in the cache, so that `rules` returns or raises at once."""
        return _cache.get(self) is not None

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
                keywords=[each.path for each in rules.unenforced[:_MAX_LOGGED_KEYWORDS]],
                num_keywords=len(rules.unenforced),
            )
        return rules


def check_parameters(text: str, field: str) -> None:
    """Check that a text is a schema of an object. The keywords are not checked.

    Raises:
        InvalidField: The text is not a schema of an object.
    """
    try:
        root = Document(text).root
    except SchemaError as error:
        raise InvalidField(f"{field}{error.path}", str(error)) from error
    types = root.get("type", "object") if isinstance(root, dict) else root and "object"
    if types != "object" and not (isinstance(types, list) and "object" in types):
        raise InvalidField(field, "The parameters of a function must be an object.")


class _RulesCache:
    """A cache of translated schemas, limited by characters. It evicts the least recently used."""

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


_cache = _RulesCache(_MAX_CACHED_LENGTH)
