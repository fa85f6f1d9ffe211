"""A parser for formats with a marker before each tool call: Hermes, Mistral, Gemma."""

import re
from collections.abc import Callable
from typing import Protocol

from service.text.reasoning import partial_marker_length
from service.text.tool_calls.events import (
    Arguments,
    CallEnd,
    CallStart,
    ContentText,
    Event,
)
from service.text.tool_calls.gemma_arguments import parse_gemma_arguments
from service.text.tool_calls.json_calls import CallList, CallObject, JsonSpan


class Body(Protocol):
    """A parser of the text after a marker."""

    @property
    def is_complete(self) -> bool: ...

    @property
    def is_failed(self) -> bool:
        """True if the last part of the text is not a tool call."""
        ...

    @property
    def text(self) -> str:
        """The consumed text that belongs to no call."""
        ...

    def push(self, text: str) -> tuple[list[Event], str]:
        """Return the events that the next piece makes certain, and the text after the body."""
        ...

    @property
    def is_call(self) -> bool:
        """True if a call has begun."""
        ...


class MarkedParser:
    """Parses text that contains tool calls, each after one of `markers`."""

    def __init__(self, markers: tuple[str, ...], body: Callable[[str], Body]) -> None:
        """Create the parser. `body` returns a parser for the text after the given marker."""
        self._markers = markers
        self._any_marker = re.compile("|".join(map(re.escape, markers)))
        self._new_body = body
        self._content = ContentText()
        self._held = ""  # the possible beginning of a marker
        self._marker = ""
        self._body: Body | None = None

    def push(self, text: str) -> list[Event]:
        events: list[Event] = []
        while text:
            if self._body is None:
                found, text = self._outside(text)
            else:
                found, text = self._inside(self._body, text)
            events += found
        return events

    def flush(self) -> list[Event]:
        events: list[Event] = []
        if self._body is not None:
            marker = "" if self._body.is_call else self._marker
            events += self._content.push(marker + self._body.text)
        events += self._content.push(self._held)
        self._held, self._body = "", None
        return events + self._content.flush()

    def _outside(self, text: str) -> tuple[list[Event], str]:
        text = self._held + text
        if found := self._any_marker.search(text):
            self._held, self._marker = "", found[0]
            self._body = self._new_body(self._marker)
            return self._content.push(text[: found.start()]), text[found.end() :]
        num_held = max(partial_marker_length(text, marker) for marker in self._markers)
        self._held = text[len(text) - num_held :]
        return self._content.push(text[: len(text) - num_held]), ""

    def _inside(self, body: Body, text: str) -> tuple[list[Event], str]:
        events, rest = body.push(text)
        if body.is_failed:
            self._body = None
            marker = "" if body.is_call else self._marker
            return events + self._content.push(marker + body.text), rest
        if any(isinstance(event, CallStart) for event in events):
            self._content.call()
        if body.is_complete:
            self._body = None
        return events, rest


class HermesBody:
    """Parses `{"name": ..., "arguments": ...}</tool_call>`. The end marker may be missing."""

    END = "</tool_call>"

    def __init__(self, names: frozenset[str]) -> None:
        self.is_complete = False
        self._call = CallObject(names)
        self._after = ""

    @property
    def is_failed(self) -> bool:
        return self._call.is_failed

    @property
    def is_call(self) -> bool:
        return self._call.is_call

    @property
    def text(self) -> str:
        return self._call.text

    def push(self, text: str) -> tuple[list[Event], str]:
        events: list[Event] = []
        if not self._call.is_complete:
            events, text = self._call.push(text)
            if not self._call.is_complete:
                return events, text
        self._after = (self._after + text).lstrip()
        if self.END.startswith(self._after):
            self.is_complete = self._after == self.END
            return events, ""
        self.is_complete = True
        return events, self._after.removeprefix(self.END)


class NamedCall:
    """Parses `name[ARGS]{...}`. Some models write `[CALL_ID]` and an id after the name."""

    _HEAD = re.compile(r"([A-Za-z0-9_-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")
    _MAX_HEAD_LENGTH = 160

    def __init__(self, names: frozenset[str]) -> None:
        self.is_complete = False
        self.is_failed = False
        self.text = ""
        self._names = names
        self._arguments: JsonSpan | None = None

    @property
    def is_call(self) -> bool:
        return self._arguments is not None

    def push(self, text: str) -> tuple[list[Event], str]:
        events: list[Event] = []
        if self._arguments is None:
            self.text, rest = self._split(self.text + text)
            head = self._HEAD.match(self.text)
            if head is None or head[1] not in self._names:
                is_whole = self.text.endswith("{") or len(self.text) > self._MAX_HEAD_LENGTH
                self.is_failed = head is not None or is_whole
                return [], rest
            text, self.text = self.text[head.end() :] + rest, ""
            self._arguments = JsonSpan()
            events.append(CallStart(head[1]))
        num_taken = self._arguments.push(text)
        if num_taken:
            events.append(Arguments(text[:num_taken]))
        if self._arguments.is_complete:
            self.is_complete = True
            events.append(CallEnd())
        return events, text[num_taken:]

    def _split(self, text: str) -> tuple[str, str]:
        """Return the text that may be a head, up to its `{` or maximum length, and the rest."""
        end = text.find("{", 0, self._MAX_HEAD_LENGTH) + 1 or self._MAX_HEAD_LENGTH + 1
        return text[:end], text[end:]


class MistralBody:
    """Parses ` [{"name": ..., "arguments": ...}, ...]`, or `name[ARGS]{...}` of newer models."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._space = ""
        self._body: CallObject | CallList | NamedCall | None = None

    @property
    def is_complete(self) -> bool:
        return self._body is not None and self._body.is_complete

    @property
    def is_failed(self) -> bool:
        return self._body is not None and self._body.is_failed

    @property
    def is_call(self) -> bool:
        return self._body is not None and self._body.is_call

    @property
    def text(self) -> str:
        if self._body is None:
            return self._space
        return self._body.text if self._body.is_call else self._space + self._body.text

    def push(self, text: str) -> tuple[list[Event], str]:
        if self._body is None:
            begun = text.lstrip()
            self._space += text[: len(text) - len(begun)]
            if not begun:
                return [], ""
            self._body = self._of_kind(begun[0])
            text = begun
        return self._body.push(text)

    def _of_kind(self, first: str) -> CallObject | CallList | NamedCall:
        if first == "[":
            return CallList(self._names)
        return CallObject(self._names) if first == "{" else NamedCall(self._names)


class GemmaBody:
    """Parses `call:name{...}` and an end marker, as a whole, because its values are not JSON."""

    _CALL = re.compile(r"\s*call:\s*([A-Za-z0-9_.-]+)\s*(\{.*\})\s*", re.DOTALL)

    def __init__(self, names: frozenset[str], end: str, quote: str) -> None:
        self.is_complete = False
        self.is_failed = False
        self.is_call = False
        self.text = ""
        self._names = names
        self._end = end
        self._quote = quote

    def push(self, text: str) -> tuple[list[Event], str]:
        num_before = max(0, len(self.text) - len(self._end))
        self.text += text
        index = self.text.find(self._end, num_before)
        if index < 0:
            return [], ""
        rest = self.text[index + len(self._end) :]
        self.text = self.text[: index + len(self._end)]
        return self._read(self.text[:index]), rest

    def _read(self, written: str) -> list[Event]:
        found = self._CALL.fullmatch(written)
        arguments = parse_gemma_arguments(found[2], self._quote) if found else None
        if found is None or arguments is None or found[1] not in self._names:
            self.is_failed = True
            return []
        self.is_complete = self.is_call = True
        return [CallStart(found[1]), Arguments(arguments), CallEnd()]
