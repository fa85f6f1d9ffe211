"""A parser for formats without a marker: if an output begins with JSON, this is tool calls."""

from service.text.tool_calls.events import CallStart, ContentText, Event
from service.text.tool_calls.json_calls import CallList, CallObject


class LeadingParser:
    """Parses an output that begins with tool calls or is only content. Content may follow calls.

    There is one call, after an optional `prefix`, or an array of calls, or several calls separated
    by `;` or white space.
    """

    def __init__(self, names: frozenset[str], prefix: str = "") -> None:
        self._names = names
        self._prefix = prefix
        self._content = ContentText()
        self._held = ""  # text after which a call may still follow
        self._call: CallObject | CallList | None = None
        self._has_calls = False
        self._is_content = False

    def push(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            if self._is_content:
                return events + self._content.push(text)
            if self._call is None:
                found, text = self._between(text)
            else:
                found, text = self._inside(self._call, text)
            events += found
        return events

    def flush(self) -> list[Event]:
        events: list[Event] = []
        if self._call is not None:
            events += self._content.push(self._held + self._call.text)
        elif not self._has_calls or self._held.strip(" \n\r\t;"):
            events += self._content.push(self._held)
        self._held, self._call = "", None
        return events + self._content.flush()

    def _between(self, text: str) -> tuple[list[Event], str]:
        text = self._held + text
        begun = text.lstrip(" \n\r\t;" if self._has_calls else None)
        if self._prefix and begun.startswith(self._prefix):
            begun = begun.removeprefix(self._prefix).lstrip()
        elif self._prefix.startswith(begun):
            self._held = text
            return [], ""
        self._held = text[: len(text) - len(begun)]
        if not begun:
            self._held = text
            return [], ""
        if begun[0] not in "{[":
            self._is_content, self._held = True, ""
            return [], text
        self._call = (CallObject if begun[0] == "{" else CallList)(self._names)
        return [], begun

    def _inside(self, call: CallObject | CallList, text: str) -> tuple[list[Event], str]:
        events, rest = call.push(text)
        if call.is_failed:
            self._is_content = True
            held = "" if call.is_call else self._held
            self._call, self._held = None, ""
            return events + self._content.push(held + call.text), rest
        if any(isinstance(event, CallStart) for event in events):
            self._content.call()
            self._has_calls, self._held = True, ""
        if call.is_complete:
            self._call = None
        return events, rest
