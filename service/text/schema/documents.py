"""A schema document as the client sent it, and its references."""

from collections.abc import Iterator
from urllib.parse import unquote, urldefrag, urljoin

from service.text.schema.errors import SchemaError
from service.text.schema.json_values import Json, extend_path, loads

MAX_LENGTH = 131_072  # characters
MAX_DEPTH = 64  # maximum depth of nested objects and arrays

# Keywords whose value is a map of names to schemas, and keywords whose value is not a schema.
_MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
_VALUES = frozenset({"const", "enum", "default", "example", "examples"})


class Document:
    """A schema document. `root` is an object or a boolean."""

    def __init__(self, text: str) -> None:
        """Parse the document.

        Raises:
            SchemaError: `text` is not JSON, not a schema, too long or too deeply nested.
        """
        if len(text) > MAX_LENGTH:
            raise SchemaError("", f"A JSON schema may have at most {MAX_LENGTH} characters.")
        try:
            self.root: Json = loads(text)
        except UnicodeEncodeError as error:
            raise SchemaError(
                "", "A string in the schema contains an unpaired surrogate."
            ) from error
        except RecursionError as error:
            raise SchemaError(
                "", "The schema is not valid JSON: it is nested too deeply."
            ) from error
        except ValueError as error:
            raise SchemaError("", f"The schema is not valid JSON: {error}.") from error
        if not isinstance(self.root, dict | bool):
            raise SchemaError("", "A JSON schema must be an object or a boolean.")
        declared = self.root.get("$schema") if isinstance(self.root, dict) else None
        self._is_draft_4 = isinstance(declared, str) and "draft-04" in declared
        self._bases: dict[int, str] = {}  # keyed by the comparison_key of a schema's object
        self._resources: dict[str, tuple[Json, str]] = {"": (self.root, "")}
        self._anchors: dict[tuple[str, str], tuple[Json, str]] = {}
        _check_depth(self.root)
        self._index()

    def resolve(self, reference: Json, schema: dict[str, Json], path: str) -> tuple[Json, str]:
        """Return the schema that a reference refers to, and its path.

        Args:
            reference: The value of `$ref` or a similar keyword.
            schema: The schema object that contains the reference.
            path: The path of the reference.

        Raises:
            SchemaError: The document has no such schema.
        """
        if not isinstance(reference, str):
            raise SchemaError(path, "A reference must be a string.")
        base = self._bases.get(id(schema), "")
        try:
            url, fragment = urldefrag(urljoin(base, reference))
        except ValueError as error:
            raise SchemaError(path, f"{reference!r} is not a valid reference.") from error
        if reference.startswith("#"):
            url = base
        if url not in self._resources:
            raise SchemaError(
                path, f"{reference!r} is outside of the schema. Remote schemas are not fetched."
            )
        fragment = unquote(fragment)
        found: tuple[Json, str] | None
        if not fragment or fragment.startswith("/"):
            found = _follow_pointer(*self._resources[url], fragment)
        else:
            found = self._anchors.get((url, fragment))
        if found is None or not isinstance(found[0], dict | bool):
            raise SchemaError(path, f"The schema has no subschema at {reference!r}.")
        return found

    def _index(self) -> None:
        """Find all targets of references: each `$id` and each anchor."""
        pending: list[tuple[Json, str, str]] = [(self.root, "", "")]
        while pending:
            value, path, base = pending.pop()
            if isinstance(value, dict):
                base = self._register(value, path, base)
            if not isinstance(value, bool):
                pending += ((item, where, base) for item, where in _subschemas(value, path))

    def _register(self, schema: dict[str, Json], path: str, base: str) -> str:
        """Record the names of a schema. Return the base URI of the references in it."""
        name = schema.get("id" if self._is_draft_4 else "$id")
        if isinstance(name, str):
            try:
                url, fragment = urldefrag(urljoin(base, name))
            except ValueError as error:
                raise SchemaError(
                    extend_path(path, "$id"), "The identifier is not a valid URI."
                ) from error
            if fragment:  # an anchor in draft 7
                self._anchors[base, fragment] = schema, path
            elif url != base:
                base = url
                self._resources[base] = schema, path
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = schema.get(keyword)
            if not isinstance(anchor, str):
                continue
            if self._anchors.setdefault((base, anchor), (schema, path))[1] != path:
                raise SchemaError(
                    extend_path(path, keyword), f"The schema has two anchors named {anchor!r}."
                )
        self._bases[id(schema)] = base
        return base


def _check_depth(root: Json) -> None:
    level: list[Json] = [root]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for value in level
            if isinstance(value, dict | list)
            for child in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise SchemaError("", f"A JSON schema may be nested at most {MAX_DEPTH} levels deep.")


def _subschemas(value: Json, path: str) -> Iterator[tuple[Json, str]]:
    """Yield each object and array directly in a schema or an array of schemas, with its path."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                yield item, extend_path(path, index)
        return
    for keyword, item in value.items():
        where = extend_path(path, keyword)
        if keyword in _MAPS and isinstance(item, dict):
            for name, schema in item.items():
                if isinstance(schema, dict | list):
                    yield schema, extend_path(where, name)
        elif keyword not in _VALUES and isinstance(item, dict | list):
            yield item, where


def _follow_pointer(value: Json, path: str, pointer: str) -> tuple[Json, str] | None:
    """Return the value at a JSON pointer (RFC 6901) and its path, or None if there is none."""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value, path = value[key], extend_path(path, key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value, path = value[int(key)], extend_path(path, int(key))
        else:
            return None
    return value, path
