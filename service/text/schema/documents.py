"""A schema as it was sent: its places, and what its references refer to."""

from collections.abc import Iterator
from urllib.parse import unquote, urldefrag, urljoin

from service.text.schema.errors import SchemaError
from service.text.schema.values import Json, loads, step

MAX_LENGTH = 131_072  # characters
MAX_DEPTH = 64  # of nested objects and arrays

# Keywords whose value is a map of names to schemas, and those whose value is no schema.
_MAPS = frozenset(
    {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"}
)
_VALUES = frozenset({"const", "enum", "default", "example", "examples"})


class Document:
    """One schema document. `root` is an object or a boolean."""

    def __init__(self, text: str) -> None:
        """
        Raises:
            SchemaError: `text` is not JSON, not a schema, too long or too deep.
        """
        if len(text) > MAX_LENGTH:
            raise SchemaError("", f"A JSON schema has at most {MAX_LENGTH} characters.")
        try:
            self.root: Json = loads(text)
        except UnicodeEncodeError as error:
            raise SchemaError("", "The schema has half a surrogate pair in a string.") from error
        except RecursionError as error:
            raise SchemaError("", "The schema is not valid JSON: it nests too deeply.") from error
        except ValueError as error:
            raise SchemaError("", f"The schema is not valid JSON: {error}.") from error
        if not isinstance(self.root, dict | bool):
            raise SchemaError("", "A JSON schema is an object or a boolean.")
        declared = self.root.get("$schema") if isinstance(self.root, dict) else None
        self._is_draft_4 = isinstance(declared, str) and "draft-04" in declared
        self._bases: dict[int, str] = {}  # by the identity of a schema's object
        self._resources: dict[str, tuple[Json, str]] = {"": (self.root, "")}
        self._anchors: dict[tuple[str, str], tuple[Json, str]] = {}
        _check_depth(self.root)
        self._index()

    def resolve(self, reference: Json, schema: dict[str, Json], path: str) -> tuple[Json, str]:
        """Return the schema that a reference in `schema` refers to, and its path.

        Args:
            path: where the reference stands.

        Raises:
            SchemaError: the document has no such schema.
        """
        if not isinstance(reference, str):
            raise SchemaError(path, "A reference is a string.")
        base = self._bases.get(id(schema), "")
        try:
            url, fragment = urldefrag(urljoin(base, reference))
        except ValueError as error:
            raise SchemaError(path, f"{reference!r} is not a valid reference.") from error
        if reference.startswith("#"):
            url = base
        if url not in self._resources:
            raise SchemaError(
                path, f"{reference!r} is outside of the schema, and no schema is fetched."
            )
        fragment = unquote(fragment)
        found: tuple[Json, str] | None
        if not fragment or fragment.startswith("/"):
            found = _descend(*self._resources[url], fragment)
        else:
            found = self._anchors.get((url, fragment))
        if found is None or not isinstance(found[0], dict | bool):
            raise SchemaError(path, f"The schema has nothing at {reference!r}.")
        return found

    def _index(self) -> None:
        """Find what references may name: each `$id` and anchor."""
        pending: list[tuple[Json, str, str]] = [(self.root, "", "")]
        while pending:
            value, path, base = pending.pop()
            if isinstance(value, dict):
                base = self._register(value, path, base)
            if not isinstance(value, bool):
                pending += ((item, where, base) for item, where in _subschemas(value, path))

    def _register(self, schema: dict[str, Json], path: str, base: str) -> str:
        """Note the names of a schema; return the base of the references in it."""
        name = schema.get("id" if self._is_draft_4 else "$id")
        if isinstance(name, str):
            try:
                url, fragment = urldefrag(urljoin(base, name))
            except ValueError as error:
                raise SchemaError(step(path, "$id"), "It is not a valid URI.") from error
            if fragment:  # how draft 7 writes an anchor
                self._anchors[base, fragment] = schema, path
            elif url != base:
                base = url
                self._resources[base] = schema, path
        for keyword in ("$anchor", "$dynamicAnchor"):
            anchor = schema.get(keyword)
            if not isinstance(anchor, str):
                continue
            if self._anchors.setdefault((base, anchor), (schema, path))[1] != path:
                raise SchemaError(step(path, keyword), f"There are two anchors {anchor!r}.")
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
    raise SchemaError("", f"A JSON schema nests at most {MAX_DEPTH} levels deep.")


def _subschemas(value: Json, path: str) -> Iterator[tuple[Json, str]]:
    """Each object and array directly in a schema or an array of schemas, with its path."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                yield item, step(path, index)
        return
    for keyword, item in value.items():
        where = step(path, keyword)
        if keyword in _MAPS and isinstance(item, dict):
            for name, schema in item.items():
                if isinstance(schema, dict | list):
                    yield schema, step(where, name)
        elif keyword not in _VALUES and isinstance(item, dict | list):
            yield item, where


def _descend(value: Json, path: str, pointer: str) -> tuple[Json, str] | None:
    """Follow a JSON pointer (RFC 6901)."""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value, path = value[key], step(path, key)
        elif isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value, path = value[int(key)], step(path, int(key))
        else:
            return None
    return value, path
