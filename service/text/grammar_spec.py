"""The grammar of a whole output: reasoning first, then tool calls or the response format."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.domain.chat import JsonLayout, ResponseFormat, ResponseFormatKind, Tool, ToolMode
from service.errors import UnsupportedField
from service.text import lark
from service.text.json_schemas import JsonSchema
from service.text.reasoning import ReasoningMarkers, Thinking
from service.text.response_formats import text_rules
from service.text.tool_calls.rules import CallRules
from service.text.tool_calls.syntax import CallSyntax


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """Everything that determines the grammar of an output.

    With a response format and tools, the model may write tool calls instead. In free text, calls of
    strict tools follow their schemas from their start.

    Attributes:
        begun: The beginning of the output, if the prompt already contains it.
        begun_field: The field of the request that has this beginning.
    """

    response_format: ResponseFormat | None
    tools: Sequence[Tool]
    tool_mode: ToolMode
    is_parallel: bool
    syntax: CallSyntax | None
    markers: ReasoningMarkers | None
    thinking: Thinking
    control_token_id: lark.ControlTokens
    json_layout: JsonLayout = JsonLayout.FLEXIBLE
    begun: str = ""
    begun_field: str = ""

    @property
    def is_needed(self) -> bool:
        """True if the output must follow a grammar."""
        if self.response_format is not None:
            return True
        is_forced = bool(self.tools) and self.tool_mode is not ToolMode.AUTO
        return is_forced or any(tool.is_strict for tool in self.tools)

    @property
    def field(self) -> str:
        """The field of the request that asks for the constraint."""
        if self.response_format is not None:
            return self.response_format.field
        return "tools"

    @property
    def length(self) -> int:
        """Total number of characters of the grammar's parts in the request."""
        wanted = self.response_format
        own = 0 if wanted is None else len(wanted.text) + sum(map(len, wanted.choices))
        return own + sum(len(tool.schema) for tool in self.tools)

    def schemas(self) -> Iterator[JsonSchema]:
        """Yield the JSON schemas of the grammar."""
        schema = self._response_schema()
        if schema is not None:
            yield schema
        yield from map(self._arguments, self.tools)

    def rules(self) -> str:
        """Return the grammar in llguidance's notation. This takes long if a schema in it is new.

        Raises:
            InvalidField or a subclass: A part is invalid.
        """
        lines: list[str] = []
        bodies: list[str] = []
        parts: dict[str, str] = {}
        if self.syntax is not None:
            bodies.append("calls")
            lines += self._calls(self.syntax, parts)
        if self.response_format is not None:
            bodies.append("@answer")
            parts["answer"], further = self._response_rules(self.response_format)
            parts |= further
        reasoning = ""
        if self.markers is not None and self.thinking is not Thinking.CLOSED:
            reasoning = "reasoning" if self.thinking is Thinking.OPEN else "reasoning?"
            lines += self._reasoning(self.markers)
        start = [f"start: {reasoning} body", f"body: {' | '.join(bodies)}"]
        return lark.composed("\n".join(dict.fromkeys([*start, *lines])), parts)

    def parts(self) -> Iterator[tuple[str, str]]:
        """Yield each part that the caller sent: its field, and a grammar of that part only."""
        if self.response_format is not None:
            rules, further = self._response_rules(self.response_format)
            yield self.field, lark.composed(rules, further) if further else rules
        for tool in self.tools:
            yield tool.schema_field, self._arguments(tool).rules()

    def _response_schema(self) -> JsonSchema | None:
        wanted = self.response_format
        if wanted is None or wanted.kind not in (
            ResponseFormatKind.JSON_OBJECT,
            ResponseFormatKind.JSON_SCHEMA,
        ):
            return None
        text = (
            wanted.text if wanted.kind is ResponseFormatKind.JSON_SCHEMA else '{"type": "object"}'
        )
        return JsonSchema(text, self.field, self.json_layout, wanted.is_strict)

    def _response_rules(self, wanted: ResponseFormat) -> tuple[str, dict[str, str]]:
        schema = self._response_schema()
        return text_rules(wanted, self.json_layout) if schema is None else (schema.rules(), {})

    def _arguments(self, tool: Tool) -> JsonSchema:
        return JsonSchema(
            tool.schema or "{}",
            tool.schema_field,
            self.json_layout,
            tool.is_strict,
            is_arguments=True,
        )

    def _calls(self, syntax: CallSyntax, parts: dict[str, str]) -> list[str]:
        """Return the rules of tool calls. The rules of arguments are added to `parts`."""
        names: dict[str, str] = {}
        for i, tool in enumerate(self.tools):
            names.setdefault(self._arguments(tool).rules(), f"arguments_{i}")
        parts.update((name, rules) for rules, name in names.items())
        arguments = [names[self._arguments(tool).rules()] for tool in self.tools]
        rules = CallRules(self.tools, arguments, syntax, self.is_parallel, self.control_token_id)
        if self.tool_mode is not ToolMode.AUTO:
            return rules.forced()
        if self.response_format is None:
            return rules.free()
        if not syntax.trigger:
            raise UnsupportedField(
                self.response_format.field.partition(".")[0],
                "This model's tool calls cannot be distinguished from JSON content. Use tools or a "
                "response format, not both.",
            )
        return rules.forced()

    def _reasoning(self, markers: ReasoningMarkers) -> list[str]:
        start = ""
        if self.thinking is Thinking.POSSIBLE:
            start = lark.marked(markers.start, (markers.start,), self.control_token_id)
        return [
            f"reasoning: {start} thinking gap",
            lark.text_through_marker("thinking", markers.end, self.control_token_id),
            r"gap: /\n{0,2}/",
            lark.TEXT,
        ]
