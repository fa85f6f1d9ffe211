"""Values that hold no others: null, booleans, numbers and strings."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from service.text.schema import numbers, patterns
from service.text.schema.branches import Branch
from service.text.schema.claims import NUMBERS
from service.text.schema.shapes import Nodes, Scalars
from service.text.schema.terminals import TooCostly
from service.text.schema.values import Json, Number, dumps, identity, quoted, type_of

_MAX_TEXTS = 16  # demands on one string


def scalars(nodes: Nodes, branch: Branch) -> Iterator[Scalars]:
    """The scalars that fulfil all of a branch.

    Raises:
        TooCostly: the demands on a string take too much to compile.
    """
    if branch.literals is not None:
        yield from _literals(nodes, branch)
        return
    excluded = set(map(identity, branch.excluded))
    words: list[Json] = [None] if "null" in branch.types else []
    words += [True, False] if "boolean" in branch.types else []
    known = tuple(dumps(word) for word in words if identity(word) not in excluded)
    if known:
        yield Scalars(any_of(known), values=known)
    if branch.types & NUMBERS:
        yield from _numbers(nodes, branch)
    if "string" in branch.types:
        if len(branch.texts) > _MAX_TEXTS:
            raise TooCostly
        terminal = _texts(branch)
        if not nodes.terminals.is_empty(terminal):
            yield Scalars(terminal)


def _literals(nodes: Nodes, branch: Branch) -> Iterator[Scalars]:
    excluded = set(map(identity, branch.excluded))
    distinct = {identity(value): value for value in branch.literals or ()}
    values = [
        value
        for key, value in distinct.items()
        if key not in excluded and type_of(value) in branch.types
    ]
    known = tuple(
        dumps(value)
        for value in values
        if not isinstance(value, str) and _is_number_within(value, branch)
    )
    names = [value for value in values if isinstance(value, str)]
    if names and branch.texts:
        terminal = _texts(branch)
        names = [name for name in names if nodes.terminals.matches(terminal, name)]
    known += tuple(map(quoted, names))
    if known:
        yield Scalars(any_of(known), values=known)


def _numbers(nodes: Nodes, branch: Branch) -> Iterator[Scalars]:
    kinds = branch.types & NUMBERS
    terminal: str | dict[str, Number | str] | None
    if not branch.multiples:
        if kinds == {"integer"}:
            terminal = numbers.integers(*branch.bounds.integers())
        else:
            terminal = numbers.decimals(branch.bounds, is_fraction="integer" not in kinds)
    elif "integer" not in kinds:
        terminal = None
    else:
        of = numbers.common_multiple(each.number for each in branch.multiples)
        terminal = numbers.multiples(of, branch.bounds, is_integer=kinds == {"integer"})
    excluded = [value for value in branch.excluded if type_of(value) in NUMBERS]
    if terminal is None or (excluded and isinstance(terminal, dict)):
        path = branch.multiples[0].path
        reason = (
            f"Multiples are supported of numbers up to {numbers.MAX_MULTIPLE}, but for their "
            "power of ten, with bounds that a double can hold."
        )
        nodes.enforcement.give_up(path, reason)
        yield from _numbers(nodes, replace(branch, multiples=()))
        return
    if isinstance(terminal, dict):
        yield Scalars(schema=dumps(terminal))
        return
    if terminal and excluded:
        if terminal == numbers.decimals(numbers.Bounds()):
            terminal = numbers.PLAIN
        terminal = f"({terminal}) & ~({' | '.join(map(numbers.equals, excluded))})"
    if not nodes.terminals.is_empty(terminal):
        yield Scalars(terminal)


def any_of(texts: Iterable[str]) -> str:
    """The terminal of any of these texts."""
    return " | ".join(map(quoted, texts))


def _texts(branch: Branch) -> str:
    """The terminal of a branch's strings."""
    matched = [text.terminal for text in branch.texts if not text.is_negated]
    others = [text.terminal for text in branch.texts if text.is_negated]
    names = [value for value in branch.excluded if isinstance(value, str)]
    if names:
        others.append(any_of(map(quoted, names)))
    if len(matched) == 1 and not others:
        return matched[0]
    parts = [f"({each})" for each in matched] or [patterns.STRING]
    return " & ".join(dict.fromkeys([*parts, *(f"~({each})" for each in others)]))


def _is_number_within(value: Json, branch: Branch) -> bool:
    if type_of(value) not in NUMBERS:
        return True
    is_multiple = all(numbers.is_multiple(value, each.number) for each in branch.multiples)
    return is_multiple and branch.bounds.holds(value)
