"""The nodes of a schema document, found as they are asked for, so that recursion is no matter."""

from collections.abc import Hashable, Iterator
from dataclasses import replace

from service.text.schema.arrays import arrays
from service.text.schema.branches import Branch
from service.text.schema.claims import OBJECT, Claim
from service.text.schema.documents import Document
from service.text.schema.enforcement import Enforcement
from service.text.schema.errors import SchemaError
from service.text.schema.objects import objects
from service.text.schema.reader import Reader
from service.text.schema.scalars import scalars
from service.text.schema.shapes import Array, Node, Object, Scalars, Shape
from service.text.schema.terminals import Terminals, TooCostly
from service.text.schema.values import identity, loads

_MAX_BRANCHES = 5_000  # alternatives of one value
_MAX_STEPS = 20_000  # to combine them
# How many claims with alternatives are kept where their combinations are too many.
_KEPT_FORKS = (6, 2, 0)
_MAX_SIZE = 40_000  # alternatives and properties of the whole schema
_MAX_EMPTY_DEPTH = 6


class Graph:
    """The nodes of one schema document."""

    def __init__(
        self, document: Document, enforcement: Enforcement, *, is_closed: bool = False
    ) -> None:
        """
        Args:
            is_closed: the value is an object; it has no properties but those that the schema
                declares, unless the schema says that it may.
        """
        self.enforcement = enforcement
        self._document = document
        self._reader = Reader(document, enforcement, self.are_disjoint)
        self._probe: Graph | None = None
        self.terminals = Terminals()
        self._shapes: dict[Node, tuple[Shape, ...]] = {}
        self._in_progress: set[Node] = set()
        self._size = 0
        root = [Claim(document.root, "")]
        if is_closed:
            root.append(OBJECT)
        self.root: Node = frozenset(root)
        self._closed = self.root if is_closed else None

    def shapes(self, node: Node) -> tuple[Shape, ...]:
        """The alternatives of a node; none where no value fulfils its claims.

        Raises:
            SchemaError
        """
        if node not in self._shapes:
            self._in_progress.add(node)
            try:
                branches = self._branches(node)
                found = [shape for branch in branches for shape in self._of(branch, node)]
            except TooCostly as error:
                raise SchemaError(_path(node), "Its patterns take too much to compile.") from error
            finally:
                self._in_progress.discard(node)
            self._shapes[node] = tuple(dict.fromkeys(found))
        return self._shapes[node]

    def is_empty(self, node: Node, depth: int = _MAX_EMPTY_DEPTH) -> bool:
        """Whether it is certain, without looking deeper, that no value fulfils a node's claims."""
        is_deep = len(self._in_progress) > _MAX_EMPTY_DEPTH and node not in self._shapes
        if depth == 0 or is_deep or node in self._in_progress:
            return False
        return all(self._is_empty_shape(shape, depth - 1) for shape in self.shapes(node))

    def _is_empty_shape(self, shape: Shape, depth: int) -> bool:
        match shape:
            case Array(prefix, rest, least):
                demanded = prefix[:least]
                if len(demanded) < least:
                    if rest is None:
                        return True
                    demanded += (rest,)
                return any(self.is_empty(node, depth) for node in demanded)
            case Object(properties):
                return any(
                    self.is_empty(each.node, depth) for each in properties if each.is_required
                )
        return False

    def are_disjoint(self, *claims: Claim) -> bool:
        """Whether it is certain that no value fulfils all of the claims.

        It is found out in a graph apart: what cannot be enforced of such a combination is no
        matter, as no answer has to fulfil it.
        """
        if self._probe is None:
            self._probe = Graph(self._document, Enforcement(is_strict=False))
            self._probe._probe = self._probe
        return self._probe.is_empty(frozenset(claims))

    def grow(self, count: int = 1) -> None:
        """Count something that takes time and memory.

        Raises:
            SchemaError: the schema comes to too much.
        """
        self._size += count
        if self._size > _MAX_SIZE:
            raise SchemaError("", "The schema comes to too many alternatives and properties.")

    def _branches(self, node: Node) -> list[Branch]:
        """The ways to fulfil a node's claims, in the order in which the schema has them.

        Where they are too many, some of the alternatives in the schema are not enforced.
        """
        size = self._size
        forks: list[Claim] = []
        for number in (None, *_KEPT_FORKS):
            self._size = size
            kept = None if number is None else _first(forks, number)
            found = self._combined(node, forks, kept)
            if found is not None:
                return found
        raise SchemaError(_path(node), "The schema combines too many alternatives.")

    def _combined(
        self, node: Node, forks: list[Claim], kept: frozenset[Claim] | None
    ) -> list[Branch] | None:
        """The ways to fulfil a node's claims; None if they are too many.

        Args:
            forks: where the claims that have alternatives are noted.
            kept: those whose alternatives are enforced; None: all.
        """
        found: list[Branch] = []
        ordered = sorted(node, key=lambda claim: (claim.path, claim.holds))
        pending: list[tuple[tuple[Claim, ...], Branch]] = [(tuple(ordered), Branch())]
        num_steps = 0
        while pending:
            claims, branch = pending.pop()
            num_steps += 1
            if num_steps > _MAX_STEPS or len(found) > _MAX_BRANCHES:
                return None
            if self._is_contradictory(branch):
                continue
            if not claims:
                self.grow()
                found.append(branch)
                continue
            split = self._split(claims, branch, forks, kept)
            if split is None:
                return None
            pending += reversed(split)
        return found

    def _is_contradictory(self, branch: Branch) -> bool:
        """Whether no value fulfils the branch, by the claims on each of its required properties."""
        if branch.is_contradictory:
            return True
        if len(branch.properties) < 2:
            return False
        for name in branch.required:
            held = frozenset(
                claim for part in branch.properties for known, claim in part.names if known == name
            )
            if len(held) > 1 and self.are_disjoint(*held):
                return True
        return False

    def _split(
        self,
        claims: tuple[Claim, ...],
        branch: Branch,
        forks: list[Claim],
        kept: frozenset[Claim] | None,
    ) -> list[tuple[tuple[Claim, ...], Branch]] | None:
        """Take the first claim apart: what is then pending, for each combination."""
        claim, later = claims[0], claims[1:]
        if claim in branch.claims:
            return [(later, branch)]
        taken = replace(branch, claims=branch.claims | {claim})
        found: list[tuple[tuple[Claim, ...], Branch]] = [((), taken)]
        for clause in self._reader.clauses(claim):
            if len(clause) > 1:
                forks.append(claim)
                if kept is not None and claim not in kept:
                    self.enforcement.give_up(
                        claim.cause or claim.path,
                        "Its alternatives are too many in combination with others.",
                    )
                    continue
            found = [
                (further + option.claims, combined)
                for further, each in found
                for option in clause
                if not (combined := each.with_atoms(option.atoms)).is_contradictory
            ]
            if len(found) > _MAX_BRANCHES:
                return None
        return [(further + later, each) for further, each in found]

    def _of(self, branch: Branch, node: Node) -> Iterator[Shape]:
        yield from scalars(self, branch)
        if branch.literals is not None:
            return
        if "array" in branch.types:
            yield from arrays(self, branch)
        if "object" in branch.types:
            yield from objects(self, branch, is_closed=node == self._closed)

    def known_values(self, node: Node) -> tuple[str, ...] | None:
        """All values of a node, as JSON texts, if it is an enumeration of scalars."""
        values: dict[Hashable, str] = {}
        for shape in self.shapes(node):
            if not isinstance(shape, Scalars) or shape.values is None:
                return None
            for text in shape.values:
                values.setdefault(identity(loads(text)), text)
        return tuple(values.values())


def _first(forks: list[Claim], number: int) -> frozenset[Claim]:
    """The first so many claims with alternatives, those that are not about negation first."""
    distinct = dict.fromkeys(sorted(forks, key=lambda claim: not claim.holds))
    return frozenset(list(distinct)[:number])


def _path(node: Node) -> str:
    return min((claim.path for claim in node), default="")
