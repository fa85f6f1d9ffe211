"""Calls as rules of a grammar."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from service.text import lark
from service.text.tool_calls.syntax import CallSyntax
from service.types import Tool

# So that a model which has lost its way does not call until its context is full.
_MAX_FORCED_CALLS = 32

# What may come instead of calls in a format that knows calls by how an answer begins.
_CONTENT = r"CONTENT: /[^\s{\[](?s:.*)/"


def arguments_schema(tool: Tool) -> dict[str, Any]:
    """What the arguments must be: an object, of the parameters that are declared."""
    schema: dict[str, Any] = {"type": "object", **tool.parameters}
    has_others = schema.keys() & {"additionalProperties", "patternProperties", "allOf", "$ref"}
    has_choice = schema.keys() & {"anyOf", "oneOf"}
    if "properties" not in schema and not tool.parameters:
        return schema | {"properties": {}, "additionalProperties": False}
    if "properties" in schema and not has_others and not has_choice:
        schema["additionalProperties"] = False
    return schema


def arguments_rule(tool: Tool) -> str:
    """A rule's part: the arguments. Of a function that is not strict, as far as can be enforced."""
    return lark.json_schema(arguments_schema(tool), is_lenient=not tool.is_strict)


@dataclass(frozen=True, slots=True)
class CallRules:
    """Calls of `tools`, written in `syntax`, as rules."""

    tools: Sequence[Tool]
    syntax: CallSyntax
    is_parallel: bool
    control_token_id: lark.ControlTokens

    def forced(self) -> list[str]:
        """Rules by which `calls` is one or more calls, and nothing else."""
        opening, before_name = self.syntax.opening, self.syntax.before_name
        return [f"calls: {self._calls(opening)}", *self._call(before_name)]

    def free(self) -> list[str]:
        """Rules by which `calls` is any text, in which every call that begins is as it should be.

        Text and calls are told apart by the format's trigger. In a format without one, an answer
        that begins with a bracket, or with white space, must be calls.
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
        head = lark.until("head", syntax.trigger, self.control_token_id)
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
            rules += [
                f"call_{i}: {head} arguments_{i} {end}",
                f"arguments_{i}: {arguments_rule(tool)}",
            ]
        return rules

    def _written(self, text: str) -> str:
        return lark.marked(text, self.syntax.markers, self.control_token_id)
