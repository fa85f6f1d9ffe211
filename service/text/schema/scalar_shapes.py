"""The shapes of values without parts: null, booleans, numbers and strings."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from service.text.schema import numbers, patterns
from service.text.schema.assertions import NUMBERS
from service.text.schema.conjunctions import Conjunction
from service.text.schema.json_values import Json, Number, comparison_key, dumps, quoted, type_of
from service.text.schema.shapes import ScalarShape, ShapeGraph
from service.text.schema.terminal_checks import TerminalTooComplex

_MAX_TERMINALS = 16  # maximum number of terminals that one string must match


def scalar_shapes(graph: ShapeGraph, conjunction: Conjunction) -> Iterator[ScalarShape]:
    """Yield the scalars that match a conjunction.

    Raises:
        TerminalTooComplex: The constraints on a string cost too much to compile.
    """
    if conjunction.literals is not None:
        yield from _literals(graph, conjunction)
        return
    excluded = set(map(comparison_key, conjunction.excluded))
    words: list[Json] = [None] if "null" in conjunction.types else []
    words += [True, False] if "boolean" in conjunction.types else []
    known = tuple(dumps(word) for word in words if comparison_key(word) not in excluded)
    if known:
        yield ScalarShape(literals_terminal(known), values=known)
    if conjunction.types & NUMBERS:
        yield from _numbers(graph, conjunction)
    if "string" in conjunction.types:
        if len(conjunction.texts) > _MAX_TERMINALS:
            raise TerminalTooComplex
        terminal = _texts(conjunction)
        if not graph.terminals.is_empty(terminal):
            yield ScalarShape(terminal)


def _literals(graph: ShapeGraph, conjunction: Conjunction) -> Iterator[ScalarShape]:
    excluded = set(map(comparison_key, conjunction.excluded))
    distinct = {comparison_key(value): value for value in conjunction.literals or ()}
    values = [
        value
        for key, value in distinct.items()
        if key not in excluded and type_of(value) in conjunction.types
    ]
    known = tuple(
        dumps(value)
        for value in values
        if not isinstance(value, str) and _is_number_within(value, conjunction)
    )
    names = [value for value in values if isinstance(value, str)]
    if names and conjunction.texts:
        terminal = _texts(conjunction)
        names = [name for name in names if graph.terminals.matches(terminal, name)]
    known += tuple(map(quoted, names))
    if known:
        yield ScalarShape(literals_terminal(known), values=known)


def _numbers(graph: ShapeGraph, conjunction: Conjunction) -> Iterator[ScalarShape]:
    kinds = conjunction.types & NUMBERS
    terminal: str | dict[str, Number | str] | None
    if not conjunction.multiples:
        if kinds == {"integer"}:
            terminal = numbers.integers(*conjunction.bounds.integers())
        else:
            terminal = numbers.decimals(conjunction.bounds, is_fraction="integer" not in kinds)
    elif "integer" not in kinds:
        terminal = None
    else:
        of = numbers.common_multiple(each.number for each in conjunction.multiples)
        terminal = numbers.multiples(of, conjunction.bounds, is_integer=kinds == {"integer"})
    excluded = [value for value in conjunction.excluded if type_of(value) in NUMBERS]
    if terminal is None or (excluded and isinstance(terminal, dict)):
        path = conjunction.multiples[0].path
        reason = (
            f"The number may be at most {numbers.MAX_MULTIPLE}, times any power of ten, and the "
            "bounds must be exact as doubles."
        )
        graph.enforcement.cannot_enforce(path, reason)
        yield from _numbers(graph, replace(conjunction, multiples=()))
        return
    if isinstance(terminal, dict):
        yield ScalarShape(schema=dumps(terminal))
        return
    if terminal and excluded:
        if terminal == numbers.decimals(numbers.Bounds()):
            terminal = numbers.PLAIN
        terminal = f"({terminal}) & ~({' | '.join(map(numbers.equals, excluded))})"
    if not graph.terminals.is_empty(terminal):
        yield ScalarShape(terminal)


def literals_terminal(texts: Iterable[str]) -> str:
    """Return the terminal that matches any of these texts."""
    return " | ".join(map(quoted, texts))


def _texts(conjunction: Conjunction) -> str:
    """Return the terminal of a conjunction's strings."""
    matched = [text.terminal for text in conjunction.texts if not text.is_negated]
    others = [text.terminal for text in conjunction.texts if text.is_negated]
    names = [value for value in conjunction.excluded if isinstance(value, str)]
    if names:
        others.append(literals_terminal(map(quoted, names)))
    if len(matched) == 1 and not others:
        return matched[0]
    parts = [f"({each})" for each in matched] or [patterns.STRING]
    return " & ".join(dict.fromkeys([*parts, *(f"~({each})" for each in others)]))


def _is_number_within(value: Json, conjunction: Conjunction) -> bool:
    if type_of(value) not in NUMBERS:
        return True
    is_multiple = all(numbers.is_multiple(value, each.number) for each in conjunction.multiples)
    return is_multiple and conjunction.bounds.contains(value)
