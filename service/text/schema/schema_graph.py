"""The graph of a schema document's nodes, built on demand so that schemas can be recursive."""

from collections.abc import Hashable, Iterator
from dataclasses import replace

from service.text.schema.array_shapes import array_shapes
from service.text.schema.assertions import OBJECT, Subschema
from service.text.schema.clauses import ClauseReader
from service.text.schema.conjunctions import Conjunction
from service.text.schema.documents import Document
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import comparison_key, loads
from service.text.schema.object_shapes import object_shapes
from service.text.schema.scalar_shapes import scalar_shapes
from service.text.schema.shapes import ArrayShape, Node, ObjectShape, ScalarShape, Shape
from service.text.schema.terminal_checks import TerminalChecker, TerminalTooComplex

_MAX_CONJUNCTIONS = 5_000  # maximum number of conjunctions of one node
_MAX_STEPS = 20_000  # maximum number of steps to find the conjunctions of one node
# If a node has too many conjunctions, the alternatives of only this number of subschemas are
# enforced. The numbers are tried in this order.
_KEPT_DISJUNCTIONS = (6, 2, 0)
_MAX_SIZE = 40_000  # maximum number of conjunctions and properties of the whole schema
_MAX_EMPTY_DEPTH = 6


class SchemaGraph:
    """The nodes of one schema document. A node is the set of subschemas that apply to one value."""

    def __init__(
        self, document: Document, enforcement: Enforcement, *, is_closed: bool = False
    ) -> None:
        """Create the graph with its root.

        Args:
            is_closed: If True, the root value is an object. It has only the properties that the
                schema declares, unless the schema allows others explicitly.
        """
        self.enforcement = enforcement
        self._document = document
        self._reader = ClauseReader(document, enforcement, self.are_disjoint)
        self._probe: SchemaGraph | None = None
        self.terminals = TerminalChecker()
        self._shapes: dict[Node, tuple[Shape, ...]] = {}
        self._in_progress: set[Node] = set()
        self._size = 0
        root = [Subschema(document.root, "")]
        if is_closed:
            root.append(OBJECT)
        self.root: Node = frozenset(root)
        self._closed = self.root if is_closed else None

    def shapes(self, node: Node) -> tuple[Shape, ...]:
        """Return the alternatives of a node. There are none if no value matches its subschemas.

        Raises:
            SchemaError: The schema is malformed or too complex, or strict and not enforceable.
        """
        if node not in self._shapes:
            self._in_progress.add(node)
            try:
                conjunctions = self._conjunctions(node)
                found = [
                    shape for conjunction in conjunctions for shape in self._of(conjunction, node)
                ]
            except TerminalTooComplex as error:
                raise SchemaError(
                    _path(node), "The patterns of this schema are too complex."
                ) from error
            finally:
                self._in_progress.discard(node)
            self._shapes[node] = tuple(dict.fromkeys(found))
        return self._shapes[node]

    def is_empty(self, node: Node, depth: int = _MAX_EMPTY_DEPTH) -> bool:
        """Return True if certainly no value matches the node, looking `depth` levels deep."""
        is_deep = len(self._in_progress) > _MAX_EMPTY_DEPTH and node not in self._shapes
        if depth == 0 or is_deep or node in self._in_progress:
            return False
        return all(self._is_empty_shape(shape, depth - 1) for shape in self.shapes(node))

    def _is_empty_shape(self, shape: Shape, depth: int) -> bool:
        match shape:
            case ArrayShape(prefix, rest, least):
                demanded = prefix[:least]
                if len(demanded) < least:
                    if rest is None:
                        return True
                    demanded += (rest,)
                return any(self.is_empty(node, depth) for node in demanded)
            case ObjectShape(properties):
                return any(
                    self.is_empty(each.node, depth) for each in properties if each.is_required
                )
        return False

    def are_disjoint(self, *subschemas: Subschema) -> bool:
        """Return True if certainly no value matches all of the subschemas.

        This uses a separate, lenient graph. If it cannot enforce a keyword of this combination,
        that does not matter: no output has to match the combination.
        """
        if self._probe is None:
            self._probe = SchemaGraph(self._document, Enforcement(is_strict=False))
            self._probe._probe = self._probe
        return self._probe.is_empty(frozenset(subschemas))

    def add_size(self, count: int = 1) -> None:
        """Count conjunctions or properties, which cost time and memory.

        Raises:
            SchemaError: The schema is too large.
        """
        self._size += count
        if self._size > _MAX_SIZE:
            raise SchemaError("", "The schema has too many alternatives and properties.")

    def _conjunctions(self, node: Node) -> list[Conjunction]:
        """Return the ways to match a node, in the order of the schema.

        If there are too many, some of the schema's alternatives are not enforced.
        """
        size = self._size
        disjunctions: list[Subschema] = []
        for number in (None, *_KEPT_DISJUNCTIONS):
            self._size = size
            kept = None if number is None else _first(disjunctions, number)
            found = self._combined(node, disjunctions, kept)
            if found is not None:
                return found
        raise SchemaError(_path(node), "The schema combines too many alternatives.")

    def _combined(
        self, node: Node, disjunctions: list[Subschema], kept: frozenset[Subschema] | None
    ) -> list[Conjunction] | None:
        """Return the ways to match a node, or None if there are too many.

        Args:
            disjunctions: Receives the subschemas that have alternatives.
            kept: Subschemas whose alternatives are enforced; None for all of them.
        """
        found: list[Conjunction] = []
        ordered = sorted(node, key=lambda subschema: (subschema.path, not subschema.is_negated))
        pending: list[tuple[tuple[Subschema, ...], Conjunction]] = [(tuple(ordered), Conjunction())]
        num_steps = 0
        while pending:
            subschemas, conjunction = pending.pop()
            num_steps += 1
            if num_steps > _MAX_STEPS or len(found) > _MAX_CONJUNCTIONS:
                return None
            if self._is_contradictory(conjunction):
                continue
            if not subschemas:
                self.add_size()
                found.append(conjunction)
                continue
            split = self._split(subschemas, conjunction, disjunctions, kept)
            if split is None:
                return None
            pending += reversed(split)
        return found

    def _is_contradictory(self, conjunction: Conjunction) -> bool:
        """Return True if certainly no value matches. The required properties are considered."""
        if conjunction.is_contradictory:
            return True
        if len(conjunction.properties) < 2:
            return False
        for name in conjunction.required:
            subschemas = frozenset(
                subschema
                for part in conjunction.properties
                for known, subschema in part.names
                if known == name
            )
            if len(subschemas) > 1 and self.are_disjoint(*subschemas):
                return True
        return False

    def _split(
        self,
        subschemas: tuple[Subschema, ...],
        conjunction: Conjunction,
        disjunctions: list[Subschema],
        kept: frozenset[Subschema] | None,
    ) -> list[tuple[tuple[Subschema, ...], Conjunction]] | None:
        """Split the first subschema into clauses.

        Returns:
            The remaining subschemas and the new conjunction, for each combination of alternatives.
            None if there are too many.
        """
        subschema, later = subschemas[0], subschemas[1:]
        if subschema in conjunction.subschemas:
            return [(later, conjunction)]
        taken = replace(conjunction, subschemas=conjunction.subschemas | {subschema})
        found: list[tuple[tuple[Subschema, ...], Conjunction]] = [((), taken)]
        for clause in self._reader.clauses(subschema):
            if len(clause) > 1:
                disjunctions.append(subschema)
                if kept is not None and subschema not in kept:
                    self.enforcement.cannot_enforce(
                        subschema.negated_by or subschema.path,
                        "This schema has too many combinations of alternatives.",
                    )
                    continue
            found = [
                (further + option.subschemas, combined)
                for further, each in found
                for option in clause
                if not (combined := each.with_assertions(option.assertions)).is_contradictory
            ]
            if len(found) > _MAX_CONJUNCTIONS:
                return None
        return [(further + later, each) for further, each in found]

    def _of(self, conjunction: Conjunction, node: Node) -> Iterator[Shape]:
        yield from scalar_shapes(self, conjunction)
        if conjunction.literals is not None:
            return
        if "array" in conjunction.types:
            yield from array_shapes(self, conjunction)
        if "object" in conjunction.types:
            yield from object_shapes(self, conjunction, is_closed=node == self._closed)

    def enumerated_values(self, node: Node) -> tuple[str, ...] | None:
        """Return all values of a node as JSON texts; None unless they are enumerated scalars."""
        values: dict[Hashable, str] = {}
        for shape in self.shapes(node):
            if not isinstance(shape, ScalarShape) or shape.values is None:
                return None
            for text in shape.values:
                values.setdefault(comparison_key(loads(text)), text)
        return tuple(values.values())


def _first(disjunctions: list[Subschema], number: int) -> frozenset[Subschema]:
    """Return the first `number` subschemas with alternatives, negated ones last."""
    distinct = dict.fromkeys(sorted(disjunctions, key=lambda subschema: subschema.is_negated))
    return frozenset(list(distinct)[:number])


def _path(node: Node) -> str:
    return min((subschema.path for subschema in node), default="")
