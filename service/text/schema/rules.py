"""Writes the shapes of a schema's values as grammar rules."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from service.domain.chat import JsonLayout
from service.text.schema.assertions import Contains
from service.text.schema.contains_automaton import ContainsAutomaton, State
from service.text.schema.documents import Document
from service.text.schema.enforcement import Enforcement, UnenforcedKeyword
from service.text.schema.errors import SchemaError
from service.text.schema.json_values import quoted
from service.text.schema.pruning import reachable_shapes, satisfiable_shapes
from service.text.schema.schema_graph import SchemaGraph
from service.text.schema.shapes import ArrayShape, Node, ObjectShape, PropertyShape, ScalarShape

# Rules are written recursively up to this depth. Deeper ones are queued, for chains of any length.
_MAX_NESTED = 20
_SYMBOL = re.compile(r"[rT]\d+|EMPTY_OBJECT|EMPTY_ARRAY")
_NO_SPACE = '{"whitespace_flexible": false}'

_FLEXIBLE = r"""
LEAD: / |\n/
OPEN_OBJECT: /\{(?: |\n {0,32}|\n\t{1,8})?/
CLOSE_OBJECT: /(?: |\n {0,32}|\n\t{1,8})?\}/
EMPTY_OBJECT: /\{ ?\}/
OPEN_ARRAY: /\[(?: |\n {0,32}|\n\t{1,8})?/
CLOSE_ARRAY: /(?: |\n {0,32}|\n\t{1,8})?\]/
EMPTY_ARRAY: /\[ ?\]/
COMMA: /,(?: |\n {0,32}|\n\t{1,8})?/
COLON: / ?: ?/
"""
_COMPACT = """
OPEN_OBJECT: "{"
CLOSE_OBJECT: "}"
EMPTY_OBJECT: "{}"
OPEN_ARRAY: "["
CLOSE_ARRAY: "]"
EMPTY_ARRAY: "[]"
COMMA: ","
COLON: ":"
"""


@dataclass(frozen=True, slots=True)
class JsonRules:
    """Grammar rules for the values of a schema, and the keywords that they do not enforce."""

    text: str
    unenforced: tuple[UnenforcedKeyword, ...] = ()


def json_rules(
    schema: str, layout: JsonLayout, *, is_strict: bool, is_arguments: bool = False
) -> JsonRules:
    """Write the grammar of the JSON values that match a schema.

    Args:
        schema: The schema, as JSON text.
        layout: The white space that the values may contain.
        is_strict: If True, the schema is rejected if a keyword cannot be enforced.
        is_arguments: If True, the value is an object with only the properties that the schema
            declares.

    Raises:
        SchemaError: The schema is malformed, or no value matches it.
        UnsupportedKeyword: The schema is strict, and a keyword cannot be enforced.
    """
    enforcement = Enforcement(is_strict=is_strict)
    try:
        writer = _RuleWriter(SchemaGraph(Document(schema), enforcement, is_closed=is_arguments))
        text = writer.write()
    except RecursionError as error:
        raise SchemaError("", "The schema is nested too deeply.") from error
    lead = "LEAD? " if layout is JsonLayout.FLEXIBLE and not is_arguments else ""
    terminals = _FLEXIBLE if layout is JsonLayout.FLEXIBLE else _COMPACT
    return JsonRules(f"start: {lead}{text}{terminals}", enforcement.unenforced)


class _RuleWriter:
    """Writes the rules of one graph."""

    def __init__(self, graph: SchemaGraph) -> None:
        """Find the shapes to write.

        Raises:
            SchemaError: The schema cannot be translated, or no value matches it.
        """
        self._shapes = satisfiable_shapes(reachable_shapes(graph))
        self._root = graph.root
        if not self._shapes[self._root]:
            raise SchemaError("", "No JSON value can match the schema.")
        self._enumerated_values = graph.enumerated_values
        self._symbols: dict[Node, str] = {}
        self._in_progress: dict[Node, str] = {}  # rule names; "" until a rule refers to it
        self._pending: list[Node] = []
        self._names: dict[str, str] = {}  # names of rules and terminals, by their text
        self._lines: list[str] = []

    def write(self) -> str:
        """Return the start symbol, and a line for each rule and terminal."""
        start = self._symbol(self._root)
        while self._pending:
            node = self._pending.pop()
            self._define(self._in_progress[node], self._options(node))
        return "\n".join([start, *self._lines])

    def _symbol(self, node: Node) -> str:
        """Return the name of a node's rule or terminal."""
        if node in self._symbols:
            return self._symbols[node]
        if node in self._in_progress:
            self._in_progress[node] = self._in_progress[node] or self._new_name()
            return self._in_progress[node]
        if len(self._in_progress) - len(self._pending) > _MAX_NESTED:
            self._in_progress[node] = self._symbols[node] = self._new_name()
            self._pending.append(node)
            return self._symbols[node]
        self._in_progress[node] = ""
        options = self._options(node)
        name = self._in_progress.pop(node)
        if name:
            self._define(name, options)
        else:
            name = self._rule(options)
        self._symbols[node] = name
        return name

    def _options(self, node: Node) -> list[str]:
        terminals, options = [], []
        for shape in self._shapes[node]:
            match shape:
                case ScalarShape(terminal, schema) if schema:
                    options.append(f'%json {{"x-guidance": {_NO_SPACE}, {schema[1:]}')
                case ScalarShape(terminal):
                    terminals.append(terminal)
                case ArrayShape():
                    options.append(self._array(shape))
                case ObjectShape():
                    options.append(self._object(shape))
        if terminals:
            options.insert(0, self._terminal(" | ".join(f"({each})" for each in terminals)))
        return options

    def _new_name(self) -> str:
        name = f"r{len(self._lines)}"
        self._lines.append("")
        return name

    def _define(self, name: str, options: Iterable[str]) -> None:
        self._lines[int(name[1:])] = f"{name}: {' | '.join(options)}"

    def _rule(self, options: list[str]) -> str:
        """Return the name of the rule for these alternatives, which is added if it is new."""
        body = " | ".join(dict.fromkeys(options))
        if _SYMBOL.fullmatch(body):
            return body
        if body not in self._names:
            self._names[body] = name = self._new_name()
            self._define(name, [body])
        return self._names[body]

    def _terminal(self, expression: str) -> str:
        if expression not in self._names:
            name = f"T{len(self._lines)}"
            self._names[expression] = name
            self._lines.append(f"{name}: {expression}")
        return self._names[expression]

    def _object(self, shape: ObjectShape) -> str:
        members = [
            f"{self._terminal(f'{quoted(quoted(each.name))} COLON')} {self._symbol(each.node)}"
            for each in shape.properties
        ]
        other = ""
        if shape.others:
            other = self._rule(
                [
                    f"{self._terminal(f'({key}) COLON')} {self._symbol(node)}"
                    for key, node in shape.others
                ]
            )
        if shape.least or shape.most is not None:
            options = self._counted_members(shape, members, other)
        else:
            options = self._members(shape.properties, members, other)
        if not options:
            return "EMPTY_OBJECT"
        is_empty = not shape.least and not any(map(_is_required, shape.properties))
        filled = f"OPEN_OBJECT ({' | '.join(options)}) CLOSE_OBJECT"
        return self._rule(["EMPTY_OBJECT", filled] if is_empty else [filled])

    def _members(
        self, properties: tuple[PropertyShape, ...], members: list[str], other: str
    ) -> list[str]:
        """Return the alternatives for an object's members: one for each possible first member."""
        first_required = next(
            (i for i, each in enumerate(properties) if each.is_required), len(properties) - 1
        )
        tail = f"(COMMA {other})*" if other else ""
        options = []
        if other and not any(map(_is_required, properties)):
            options.append(f"{other} {tail}")
        for index in reversed(range(len(properties))):
            if index <= first_required:
                tail = self._rule([tail]) if tail else ""
                options.append(f"{members[index]} {tail}")
            member = f"COMMA {members[index]}"
            tail = f"{member if properties[index].is_required else f'({member})?'} {tail}"
        return options[::-1]

    def _counted_members(self, shape: ObjectShape, members: list[str], other: str) -> list[str]:
        """Return the alternatives for the members of an object with limits on their number.

        The parameter of the rules is the number of properties so far.
        """
        properties, least = shape.properties, shape.least
        most = 2**31 if shape.most is None else shape.most
        if most == 0:
            return []
        certain, required = int(bool(other)), 0  # possible and required later properties
        tail = self._counted_others(other, least, most, len(members))
        options = []
        are_certain = least <= len(members) + 1
        if other and not any(map(_is_required, properties)) and (least <= 1 or not are_certain):
            options.append(f"{other} {tail.replace('::_', '::1')}")
        for index in reversed(range(len(properties))):
            is_required = properties[index].is_required
            can_begin = not any(map(_is_required, properties[:index])) and most > required
            if can_begin and (least <= 1 + certain or not are_certain):
                options.append(f"{members[index]} {tail.replace('::_', '::1')}")
            taken = tail.replace("::_", "::incr(_)")
            ways = [f"COMMA {members[index]} {taken} %if lt(_, {max(most - required, 0)})"]
            if not is_required:
                ways.append(f"{tail} %if ge(_, {max(least - certain, 0)})")
            tail = self._counted_rule(ways)
            certain += 1
            required += is_required
        return options[::-1]

    def _counted_others(self, other: str, least: int, most: int, num_members: int) -> str:
        """Return the rule for undeclared properties, which follow the declared ones."""
        if not other:
            return self._counted_rule([f'"" %if ge(_, {least})'])
        end = f'"" %if ge(_, {least})'
        more = f"COMMA {other} SELF::incr(_) %if lt(_, {most})"
        if least > num_members + 1:
            return self._counted_rule([end, more])
        # Only the first undeclared property certainly differs in name from all others.
        last = self._counted_rule(['""', more]).removesuffix("::_")
        needed = f"and(lt(_, {most}), ge(_, {max(least - 1, 0)}))"
        return self._counted_rule([end, f"COMMA {other} {last}::incr(_) %if {needed}"])

    def _counted_rule(self, ways: list[str]) -> str:
        """Add a rule with a parameter, which may refer to itself as `SELF`. Return a call of it."""
        name = self._new_name()
        body = " | ".join(ways).replace("SELF::", f"{name}::")
        self._lines[int(name[1:])] = f"{name}::_ : {body}"
        return f"{name}::_"

    def _array(self, shape: ArrayShape) -> str:
        if shape.contains is not None:
            options = self._containing(shape, shape.contains)
        elif shape.is_unique and shape.rest is not None:
            options = self._distinct(self._enumerated_values(shape.rest) or (), shape)
        else:
            options = self._items(shape)
        filled = [f"OPEN_ARRAY {option} CLOSE_ARRAY" for option in options if option]
        is_empty = shape.least == 0 and (shape.contains is None or shape.contains.least == 0)
        return self._rule([*(["EMPTY_ARRAY"] if is_empty else []), *filled])

    def _items(self, shape: ArrayShape) -> list[str]:
        symbols = [self._symbol(node) for node in shape.prefix]
        num_certain = len(symbols)
        tail = ""
        if shape.rest is not None:
            rest = self._symbol(shape.rest)
            if not symbols:
                symbols, num_certain = [rest], 1
            least = max(shape.least - num_certain, 0)
            most = None if shape.most is None else shape.most - num_certain
            if most != 0:
                tail = f"(COMMA {rest}){{{least},{'' if most is None else most}}}"
        for index in reversed(range(1, len(symbols))):
            tail = f"COMMA {symbols[index]} {tail}"
            if index >= shape.least:
                tail = f"({self._rule([tail])})?"
        return [f"{symbols[0]} {tail}"] if symbols else []

    def _distinct(self, values: tuple[str, ...], shape: ArrayShape) -> list[str]:
        """Return the alternatives for unique items of an enumeration.

        The rule's parameter has a bit for each value.
        """
        terminals = [self._terminal(quoted(value)) for value in values]
        ways = [f'"" %if bit_count_ge(_, {shape.least})']
        ways += (
            f"COMMA {terminal} SELF::set_bit({bit}) "
            f"%if and(bit_clear({bit}), bit_count_lt(_, {shape.most}))"
            for bit, terminal in enumerate(terminals)
        )
        name = self._counted_rule(ways).removesuffix("::_")
        return [f"{terminal} {name}::{1 << bit}" for bit, terminal in enumerate(terminals)]

    def _containing(self, shape: ArrayShape, contains: Contains) -> list[str]:
        """Return the alternatives for items with `contains`: one rule for each automaton state."""
        automaton = ContainsAutomaton(shape, contains, self._shapes)
        names: dict[State, str] = {}

        def follow(state: State) -> list[str]:
            return [
                f"{self._symbol(node)} {rule(after)}"
                for node, after in automaton.transitions(state)
            ]

        def rule(state: State) -> str:
            if state not in names:
                names[state] = self._new_name()
                ways = ['""'] if automaton.is_accepting(state) else []
                self._define(names[state], [*ways, *(f"COMMA {way}" for way in follow(state))])
            return names[state]

        return follow((0, 0))


def _is_required(member: PropertyShape) -> bool:
    return member.is_required
