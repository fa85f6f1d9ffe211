"""Tool calls as rules of a grammar."""

from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.chat import Tool
from service.text import lark
from service.text.tool_calls.syntax import CallSyntax

# Maximum number of forced calls. Without a limit, a model could write calls until its context is
# full.
_MAX_FORCED_CALLS = 32

# The content that a format without a trigger allows instead of calls.
_CONTENT = r"CONTENT: /[^\s{\[](?s:.*)/"


@dataclass(frozen=True, slots=True)
class CallRules:
    """Rules for calls of `tools` in the format `syntax`.

    `arguments` are the names of the grammars of each tool's arguments.
    """

    tools: Sequence[Tool]
    arguments: Sequence[str]
    syntax: CallSyntax
    is_parallel: bool
    control_token_id: lark.ControlTokens

    def forced(self) -> list[str]:
        """Return rules in which `calls` is one or more calls, and nothing else."""
        opening, before_name = self.syntax.opening, self.syntax.before_name
        return [f"calls: {self._calls(opening)}", *self._call(before_name)]

    def free(self) -> list[str]:
        """Return rules in which `calls` is any text, and every call in it is valid.

        The format's trigger separates text from calls. Without a trigger, an output that begins
        with a bracket or with white space must be calls.
        """
        syntax = self.syntax
        opening, before_name = syntax.opening, syntax.before_name
        if not syntax.trigger:
            only = f"only_calls: {self._calls(opening)}"
            return ["calls: only_calls | CONTENT |", _CONTENT, only, *self._call(before_name)]
        if opening:
            unit = self._calls(opening.removeprefix(syntax.trigger))
        else:
            unit, before_name = "call", before_name.removeprefix(syntax.trigger)
        block = f"(head {unit})+ TEXT" if self.is_parallel else f"head {unit}"
        head = lark.text_through_marker("head", syntax.trigger, self.control_token_id)
        return [f"calls: TEXT | {block}", head, lark.TEXT, *self._call(before_name)]

    def _calls(self, opening: str) -> str:
        more = ""
        if self.is_parallel:
            more = f"({self._written(self.syntax.separator)} call){{0,{_MAX_FORCED_CALLS - 1}}}"
        return f"{self._written(opening)} call {more} {self._written(self.syntax.closing)}"

    def _call(self, before_name: str) -> list[str]:
        rules = [f"call: {' | '.join(f'call_{i}' for i in range(len(self.tools)))}"]
        for i, tool in enumerate(self.tools):
            head = self._written(f"{before_name}{tool.name}{self.syntax.after_name}")
            end = self._written(self.syntax.after_arguments)
            rules.append(f"call_{i}: {head} @{self.arguments[i]} {end}")
        return rules

    def _written(self, text: str) -> str:
        return lark.marked(text, self.syntax.markers, self.control_token_id)
