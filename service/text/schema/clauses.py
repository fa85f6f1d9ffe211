"""Splits subschemas into clauses."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from service.text.schema.assertions import Alternative, Clause, PropertyPresence, Subschema, Types
from service.text.schema.documents import Document
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import Json, comparison_key, extend_path
from service.text.schema.keyword_assertions import assertions_of
from service.text.schema.keyword_negations import negations
from service.text.schema.keywords import Keywords

# The keywords that constrain values. All other keywords are annotations.
_ASSERTING = frozenset(
    {
        "type", "const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
        "multipleOf", "minLength", "maxLength", "pattern", "prefixItems", "items", "contains",
        "minItems", "maxItems", "uniqueItems", "unevaluatedItems", "properties", "required",
        "patternProperties", "additionalProperties", "minProperties", "maxProperties",
        "propertyNames", "unevaluatedProperties", "dependentRequired", "dependentSchemas",
        "dependencies", "allOf", "anyOf", "oneOf", "not", "if", "$ref", "$dynamicRef",
        "$recursiveRef",
    }
)  # fmt: skip

# Maximum number of `oneOf` alternatives without a tag. Each pair of them is compared.
_MAX_COMPARED = 32


class ClauseReader:
    """Splits the subschemas of one document into clauses."""

    def __init__(
        self,
        document: Document,
        enforcement: Enforcement,
        are_disjoint: Callable[[Subschema, Subschema], bool],
    ) -> None:
        self._document = document
        self._enforcement = enforcement
        self._are_disjoint = are_disjoint
        self._clauses: dict[Subschema, tuple[Clause, ...]] = {}

    def clauses(self, subschema: Subschema) -> tuple[Clause, ...]:
        """Return the clauses that are equivalent to the subschema.

        Raises:
            SchemaError: The schema is malformed, or it is strict and cannot be enforced.
        """
        if subschema not in self._clauses:
            found = self._negative(subschema) if subschema.is_negated else self._positive(subschema)
            self._clauses[subschema] = tuple(found)
        return self._clauses[subschema]

    def _positive(self, subschema: Subschema) -> list[Clause]:
        if isinstance(subschema.schema, bool):
            return [] if subschema.schema else [()]
        if not isinstance(subschema.schema, dict):
            raise SchemaError(subschema.path, "A schema must be an object or a boolean.")
        keywords = Keywords(subschema)
        found: list[Clause] = []
        found += (
            (Alternative((assertion,)),) for assertion in assertions_of(keywords, self._enforcement)
        )
        found += keywords.const_and_enum()
        found += self._conditions(keywords)
        found += self._combinations(keywords)
        return found

    def _combinations(self, keywords: Keywords) -> Iterator[Clause]:
        for child in keywords.list_of_schemas("allOf"):
            yield (Alternative(subschemas=(child,)),)
        if options := keywords.list_of_schemas("anyOf"):
            yield tuple(Alternative(subschemas=(child,)) for child in options)
        if options := keywords.list_of_schemas("oneOf"):
            yield self._one_of(keywords, options)
        for child in keywords.schemas("not"):
            yield (Alternative(subschemas=(child.negated(child.path),)),)
        for target in self._targets(keywords):
            yield (Alternative(subschemas=(target,)),)

    def _targets(self, keywords: Keywords) -> Iterator[Subschema]:
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in keywords.schema:
                path = extend_path(keywords.path, keyword)
                reference = keywords.schema[keyword]
                schema, where = self._document.resolve(reference, keywords.subschema.schema, path)
                yield Subschema(schema, where, scopes=keywords.scopes)

    def _one_of(self, keywords: Keywords, options: list[Subschema]) -> Clause:
        """Return a clause in which each option excludes the values that another option matches."""
        if _have_distinct_tags(options, self._document):
            return tuple(Alternative(subschemas=(option,)) for option in options)
        path = keywords.path_of("oneOf")
        if len(options) > _MAX_COMPARED:
            reason = f"At most {_MAX_COMPARED} alternatives without a tag are supported."
            self._enforcement.cannot_enforce(path, reason)
            return tuple(Alternative(subschemas=(option,)) for option in options)
        return tuple(
            Alternative(
                subschemas=(
                    option,
                    *(
                        other.negated(path)
                        for other in options
                        if other is not option and not self._are_disjoint(option, other)
                    ),
                )
            )
            for option in options
        )

    def _conditions(self, keywords: Keywords) -> Iterator[Clause]:
        yield from self._if_then_else(keywords)
        for name, then in keywords.dependencies():
            absent = Alternative((PropertyPresence((name,), is_forbidden=True),))
            present = (Types(frozenset({"object"})), PropertyPresence((name,)))
            if isinstance(then, Subschema):
                yield absent, Alternative(present, (then,))
            elif then:
                yield absent, Alternative((*present, PropertyPresence(then)))

    def _if_then_else(self, keywords: Keywords) -> Iterator[Clause]:
        then, otherwise = keywords.schemas("then"), keywords.schemas("else")
        condition = keywords.schemas("if")
        if not condition or not (then or otherwise):
            return
        [matched] = condition
        failed = matched.negated(matched.path)
        yield (
            Alternative(subschemas=(matched, *then)),
            Alternative(subschemas=(failed, *otherwise)),
        )

    def _negative(self, subschema: Subschema) -> list[Clause]:
        if isinstance(subschema.schema, bool):
            return [()] if subschema.schema else []
        if not isinstance(subschema.schema, dict):
            raise SchemaError(subschema.path, "A schema must be an object or a boolean.")
        found = self._negations(subschema)
        if not found and subschema.schema.keys() & _ASSERTING:
            self._enforcement.cannot_enforce(
                subschema.negated_by or subschema.path,
                "A grammar cannot enforce the negation of this schema.",
            )
            return []
        return [tuple(found)]

    def _negations(self, subschema: Subschema) -> list[Alternative]:
        """Return the alternatives of values that do not match a schema.

        Alternatives that no grammar can express are left out.
        """
        keywords = Keywords(subschema)
        found = list(negations(keywords))

        def negated(subschemas: Iterable[Subschema]) -> tuple[Subschema, ...]:
            return tuple(each.negated(subschema.negated_by) for each in subschemas)

        single = negated(keywords.list_of_schemas("allOf"))
        single += tuple(keywords.schemas("not")) + negated(self._targets(keywords))
        found += (Alternative(subschemas=(child,)) for child in single)
        for keyword in ("anyOf", "oneOf"):
            if options := negated(keywords.list_of_schemas(keyword)):
                found.append(Alternative(subschemas=options))
        then = negated(keywords.schemas("then"))
        otherwise = negated(keywords.schemas("else"))
        for condition in keywords.schemas("if"):
            found += (Alternative(subschemas=(condition, each)) for each in then)
            found += (Alternative(subschemas=(condition.negated(), each)) for each in otherwise)
        return found


def _have_distinct_tags(options: Iterable[Subschema], document: Document) -> bool:
    """Return True if all options are objects that require one property, each with another constant.

    Libraries write unions in this form. The check is fast for any number of options.
    """
    tags = [_tags(option.schema, option.path, document) for option in options]
    for name in tags[0] if tags else ():
        if not all(name in each for each in tags):
            continue
        values = [value for each in tags for value in each[name]]
        if len(values) == len(set(values)):
            return True
    return False


def _tags(schema: Json, path: str, document: Document) -> Mapping[str, frozenset[Any]]:
    """Return the allowed constants of each required property that has any, by its name."""
    for _ in range(8):  # references to references
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        schema, path = document.resolve(schema["$ref"], schema, extend_path(path, "$ref"))
    if not isinstance(schema, dict) or schema.get("type") != "object":
        return {}
    properties, required = schema.get("properties"), schema.get("required")
    if not isinstance(properties, dict) or not isinstance(required, list):
        return {}
    found = {}
    for name in required:
        held = properties.get(name) if isinstance(name, str) else None
        if not isinstance(held, dict):
            continue
        if "const" in held:
            found[name] = frozenset({comparison_key(held["const"])})
        elif isinstance(held.get("enum"), list):
            found[name] = frozenset(map(comparison_key, held["enum"]))
    return found
