"""Tool calls that a model writes as JSON objects, parsed from pieces of text."""

import json
import re
from contextlib import suppress
from typing import Any, NoReturn

from service.text.tool_calls.events import Arguments, CallEnd, CallStart, Event

# The usual beginning of a call: the name first, then the arguments, an object.
_HEAD = re.compile(
    r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_MAX_HEAD_LENGTH = 256


# The parts of JSON that decide where a value ends: the rest of a string, and brackets.
_STRING_REST = re.compile(r'(?:[^"\\]|\\.)*', re.DOTALL)
_STRUCTURE = re.compile(r'["{}\[\]]')


class JsonSpan:
    """Finds the end of a JSON object or array by its brackets and quotes only."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = False
        self._is_escaped = False  # the last piece ended with a backslash

    def push(self, text: str) -> int:
        """Return the number of characters of the piece up to the end of the value."""
        index = 0
        while not self.is_complete and index < len(text):
            index = self._string(text, index) if self._in_string else self._structure(text, index)
        return index

    def _string(self, text: str, index: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return index + 1
        rest = _STRING_REST.match(text, index)
        end = index if rest is None else rest.end()
        if end == len(text):
            return end
        self._in_string = text[end] != '"'
        self._is_escaped = text[end] == "\\"
        return end + 1

    def _structure(self, text: str, index: int) -> int:
        found = _STRUCTURE.search(text, index)
        if found is None:
            return len(text)
        if found[0] == '"':
            self._in_string = True
        else:
            self._depth += 1 if found[0] in "{[" else -1
            self.is_complete = self._depth <= 0
        return found.end()


class CallObject:
    """A call that a model writes as `{"name": ..., "arguments": {...}}`, in pieces.

    If the name comes first and the arguments are not a string, the arguments are returned as they
    arrive. Otherwise the call is returned at the end of the object. If the object does not call a
    function in `names`, `is_failed` is set, and `text` has all consumed text.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.is_complete = False
        self.is_failed = False
        self.text = ""
        self._names = names
        self._object = JsonSpan()
        self._arguments: JsonSpan | None = None  # None until it is known to be a call
        self._is_open = False

    @property
    def is_call(self) -> bool:
        """True if the object is certainly a tool call."""
        return self._arguments is not None or self.is_complete

    def push(self, text: str) -> tuple[list[Event], str]:
        """Return the events that the next piece makes certain, and the text after the object."""
        if not self._is_open and (begun := text.lstrip()):
            self._is_open = True
            if begun[0] != "{":
                self.is_failed = True
                return [], text
        num_taken = self._object.push(text)
        piece, rest = text[:num_taken], text[num_taken:]
        if self._arguments is not None:
            return self._more(self._arguments, piece), rest
        self.text += piece
        if len(self.text) <= _MAX_HEAD_LENGTH + len(piece) and (head := _HEAD.match(self.text)):
            name = head[1]
            if name not in self._names:
                self.is_failed = True
                return [], rest
            begun, self.text = self.text[head.end() :], ""
            self._arguments = JsonSpan()
            return [CallStart(name), *self._more(self._arguments, begun)], rest
        if self._object.is_complete:
            return self._whole(), rest
        return [], rest

    def _more(self, arguments: JsonSpan, piece: str) -> list[Event]:
        events: list[Event] = []
        if num_taken := arguments.push(piece):
            events.append(Arguments(piece[:num_taken]))
            if arguments.is_complete:
                events.append(CallEnd())
        self.is_complete = self._object.is_complete
        return events

    def _whole(self) -> list[Event]:
        call = parse_call(self.text)
        if call is None or call[0] not in self._names:
            self.is_failed = True
            return []
        self.is_complete, self.text = True, ""
        name, arguments = call
        return [CallStart(name), Arguments(arguments), CallEnd()]


def parse_call(text: str) -> tuple[str, str] | None:
    """Return the name and the arguments (JSON) of the call in an object; None if it is no call."""
    value = _loads(text)
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]  # the form of OpenAI's API
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if arguments is None:
        return value["name"], "{}"
    if isinstance(arguments, str):
        return (value["name"], arguments) if isinstance(_loads(arguments), dict) else None
    if not isinstance(arguments, dict):
        return None
    try:
        return value["name"], json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:  # a number too large for a double
        return None


def _loads(text: str) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(text, parse_constant=_reject_constant)
    return None


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class CallList:
    """Calls that a model writes as a JSON array of objects, in pieces.

    `text` is the consumed text that belongs to no call.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self.is_complete = False
        self.is_failed = False
        self.is_call = False
        self._names = names
        self._before = ""  # consumed text since the last call
        self._call: CallObject | None = None

    @property
    def text(self) -> str:
        if self._call is None or self._call.is_call:
            return self._before
        return self._before + self._call.text

    def push(self, text: str) -> tuple[list[Event], str]:
        """Return the events that the next piece makes certain, and the text after the array."""
        events: list[Event] = []
        while text and not self.is_complete and not self.is_failed:
            if self._call is None:
                text = self._between(text)
                continue
            found, text = self._call.push(text)
            events += found
            self.is_failed = self._call.is_failed
            if self._call.is_call:
                self.is_call, self._before = True, ""
            if self._call.is_complete:
                self._call = None
        return events, text

    def _between(self, text: str) -> str:
        char = text[0]
        begun = self._before.strip()
        if char == "{" and (begun or self.is_call):
            self._call = CallObject(self._names)
            return text
        if not (char.isspace() or (char == "[" and not begun and not self.is_call)):
            self.is_complete = char == "]" and self.is_call
            self.is_failed = not self.is_complete and not (char == "," and self.is_call)
            if self.is_failed:
                return text
        self._before = "" if self.is_complete else self._before + char
        return text[1:]
