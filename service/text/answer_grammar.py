"""The grammar of a whole answer: thoughts first, then calls, or the form that was asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from service.errors import UnsupportedField
from service.text import lark
from service.text.json_schemas import check_cost, check_exact
from service.text.reasoning import ReasoningMarkers, Thinking
from service.text.response_formats import FIELDS, answer_rules
from service.text.tool_calls.rules import CallRules, arguments_rule
from service.text.tool_calls.syntax import CallSyntax
from service.types import ResponseFormat, Tool, ToolMode


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """What an answer must look like.

    An answer in a form may call functions instead, where the model decides. In free text, calls of
    strict functions are held to their schemas from the moment they begin.
    """

    response_format: ResponseFormat | None
    tools: Sequence[Tool]
    tool_mode: ToolMode
    is_parallel: bool
    syntax: CallSyntax | None
    markers: ReasoningMarkers | None
    thinking: Thinking
    control_token_id: lark.ControlTokens

    @property
    def is_needed(self) -> bool:
        """Whether there is anything that an answer must look like."""
        if self.response_format is not None:
            return True
        is_forced = bool(self.tools) and self.tool_mode is not ToolMode.AUTO
        return is_forced or any(tool.is_strict for tool in self.tools)

    @property
    def field(self) -> str:
        """Where the request asks for it."""
        if self.response_format is not None:
            return FIELDS[self.response_format.form]
        return "tools"

    def rules(self) -> str:
        """The grammar, in llguidance's notation.

        Raises:
            InvalidField, or one of its kinds: what can be seen to be wrong.
        """
        lines: list[str] = []
        bodies: list[str] = []
        answer: dict[str, str] = {}
        if self.syntax is not None:
            bodies.append("calls")
            lines += self._calls(self.syntax)
        if self.response_format is not None:
            bodies.append("@answer")
            answer["answer"] = answer_rules(self.response_format)
        thoughts = ""
        if self.markers is not None and self.thinking is not Thinking.CLOSED:
            thoughts = "thoughts" if self.thinking is Thinking.OPEN else "thoughts?"
            lines += self._thoughts(self.markers)
        start = [f"start: {thoughts} body", f"body: {' | '.join(bodies)}"]
        return lark.composed("\n".join(dict.fromkeys([*start, *lines])), answer)

    def parts(self) -> Iterator[tuple[str, str]]:
        """What the caller sent of it: each field with a grammar of it alone."""
        if self.response_format is not None:
            yield FIELDS[self.response_format.form], answer_rules(self.response_format)
        for tool in self.tools:
            yield _field(tool), f"start: {arguments_rule(tool)}"

    def _calls(self, syntax: CallSyntax) -> list[str]:
        for tool in self.tools:
            check_cost(tool.parameters, _field(tool))
            if tool.is_strict:
                check_exact(tool.parameters, _field(tool))
        rules = CallRules(self.tools, syntax, self.is_parallel, self.control_token_id)
        if self.tool_mode is not ToolMode.AUTO:
            return rules.forced()
        if self.response_format is None:
            return rules.free()
        if not syntax.trigger:
            raise UnsupportedField(
                "response_format",
                "This model's calls of functions cannot be told from an answer in JSON: ask for "
                "one of the two.",
            )
        return rules.forced()

    def _thoughts(self, markers: ReasoningMarkers) -> list[str]:
        start = ""
        if self.thinking is Thinking.POSSIBLE:
            start = lark.marked(markers.start, (markers.start,), self.control_token_id)
        return [
            f"thoughts: {start} thinking gap",
            lark.until("thinking", markers.end, self.control_token_id),
            r"gap: /\n{0,2}/",
            lark.TEXT,
        ]


def _field(tool: Tool) -> str:
    return f"tools[{tool.index}].function.parameters_json_schema"
