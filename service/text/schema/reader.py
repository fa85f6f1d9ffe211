"""Claims taken apart into clauses."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from service.text.schema.assertions import assertions
from service.text.schema.claims import Alternative, Claim, Clause, Presence, Types
from service.text.schema.documents import Document
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.keywords import Keywords
from service.text.schema.opposites import opposites
from service.text.schema.values import Json, identity, step

# What a schema demands anything with. All other keywords are annotations.
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

# Alternatives of `oneOf` without a tag, each pair of which is compared.
_MAX_COMPARED = 32


class Reader:
    """Takes the claims about one document apart."""

    def __init__(
        self,
        document: Document,
        enforcement: Enforcement,
        are_disjoint: Callable[[Claim, Claim], bool],
    ) -> None:
        self._document = document
        self._enforcement = enforcement
        self._are_disjoint = are_disjoint
        self._clauses: dict[Claim, tuple[Clause, ...]] = {}

    def clauses(self, claim: Claim) -> tuple[Clause, ...]:
        """What the claim comes to.

        Raises:
            SchemaError: the schema is malformed, or must be followed and cannot be enforced.
        """
        if claim not in self._clauses:
            found = self._positive(claim) if claim.holds else self._negative(claim)
            self._clauses[claim] = tuple(found)
        return self._clauses[claim]

    def _positive(self, claim: Claim) -> list[Clause]:
        if isinstance(claim.schema, bool):
            return [] if claim.schema else [()]
        if not isinstance(claim.schema, dict):
            raise SchemaError(claim.path, "A schema is an object or a boolean.")
        keywords = Keywords(claim)
        found: list[Clause] = []
        found += ((Alternative((atom,)),) for atom in assertions(keywords, self._enforcement))
        found += keywords.enumerations()
        found += self._conditions(keywords)
        found += self._combinations(keywords)
        return found

    def _combinations(self, keywords: Keywords) -> Iterator[Clause]:
        for child in keywords.list_of_schemas("allOf"):
            yield (Alternative(claims=(child,)),)
        if options := keywords.list_of_schemas("anyOf"):
            yield tuple(Alternative(claims=(child,)) for child in options)
        if options := keywords.list_of_schemas("oneOf"):
            yield self._one_of(keywords, options)
        for child in keywords.schemas("not"):
            yield (Alternative(claims=(child.opposite(child.path),)),)
        for target in self._targets(keywords):
            yield (Alternative(claims=(target,)),)

    def _targets(self, keywords: Keywords) -> Iterator[Claim]:
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            if keyword in keywords.schema:
                path = step(keywords.path, keyword)
                reference = keywords.schema[keyword]
                schema, where = self._document.resolve(reference, keywords.claim.schema, path)
                yield Claim(schema, where, True, keywords.owners)

    def _one_of(self, keywords: Keywords, options: list[Claim]) -> Clause:
        """Each option, without what others allow as well."""
        if _have_distinct_tags(options, self._document):
            return tuple(Alternative(claims=(option,)) for option in options)
        path = keywords.where("oneOf")
        if len(options) > _MAX_COMPARED:
            reason = f"More than {_MAX_COMPARED} alternatives are not compared with one another."
            self._enforcement.give_up(path, reason)
            return tuple(Alternative(claims=(option,)) for option in options)
        return tuple(
            Alternative(
                claims=(
                    option,
                    *(
                        other.opposite(path)
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
            absent = Alternative((Presence((name,), is_forbidden=True),))
            present = (Types(frozenset({"object"})), Presence((name,)))
            if isinstance(then, Claim):
                yield absent, Alternative(present, (then,))
            elif then:
                yield absent, Alternative((*present, Presence(then)))

    def _if_then_else(self, keywords: Keywords) -> Iterator[Clause]:
        then, otherwise = keywords.schemas("then"), keywords.schemas("else")
        condition = keywords.schemas("if")
        if not condition or not (then or otherwise):
            return
        [holds] = condition
        fails = holds.opposite(holds.path)
        yield (Alternative(claims=(holds, *then)), Alternative(claims=(fails, *otherwise)))

    def _negative(self, claim: Claim) -> list[Clause]:
        if isinstance(claim.schema, bool):
            return [()] if claim.schema else []
        if not isinstance(claim.schema, dict):
            raise SchemaError(claim.path, "A schema is an object or a boolean.")
        found = self._opposites(claim)
        if not found and claim.schema.keys() & _ASSERTING:
            self._enforcement.give_up(
                claim.cause or claim.path, "A grammar cannot tell what does not fulfil the schema."
            )
            return []
        return [tuple(found)]

    def _opposites(self, claim: Claim) -> list[Alternative]:
        """Ways not to fulfil a schema. Those that no grammar can tell are left out."""
        keywords = Keywords(claim)
        found = list(opposites(keywords))

        def negated(claims: Iterable[Claim]) -> tuple[Claim, ...]:
            return tuple(each.opposite(claim.cause) for each in claims)

        single = negated(keywords.list_of_schemas("allOf"))
        single += tuple(keywords.schemas("not")) + negated(self._targets(keywords))
        found += (Alternative(claims=(child,)) for child in single)
        for keyword in ("anyOf", "oneOf"):
            if options := negated(keywords.list_of_schemas(keyword)):
                found.append(Alternative(claims=options))
        then = negated(keywords.schemas("then"))
        otherwise = negated(keywords.schemas("else"))
        for condition in keywords.schemas("if"):
            found += (Alternative(claims=(condition, each)) for each in then)
            found += (Alternative(claims=(condition.opposite(), each)) for each in otherwise)
        return found


def _have_distinct_tags(options: Iterable[Claim], document: Document) -> bool:
    """Whether all options are objects that demand a property, of another constant for each.

    This is how libraries write unions. It is told quickly, for as many options as there are.
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
    """The required properties that have a constant, with the constants."""
    for _ in range(8):  # references to references
        if not isinstance(schema, dict) or "$ref" not in schema:
            break
        schema, path = document.resolve(schema["$ref"], schema, step(path, "$ref"))
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
            found[name] = frozenset({identity(held["const"])})
        elif isinstance(held.get("enum"), list):
            found[name] = frozenset(map(identity, held["enum"]))
    return found
