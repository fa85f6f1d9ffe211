"""The events that a parser finds in an output, in order."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text outside of tool calls."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a tool call. Later text cannot make it content."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of the current call's arguments, which are JSON."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The arguments of the current call are complete."""


Event = Content | CallStart | Arguments | CallEnd


class CallParser(Protocol):
    """A parser of one output, which comes in pieces. Text that is not a call becomes content."""

    def push(self, text: str) -> list[Event]:
        """Parse the next piece. Return the events that are certain now."""
        ...

    def flush(self) -> list[Event]:
        """Return the events for the text that was held back, at the end of the output."""
        ...


class ContentText:
    """Removes white space between tool calls and the content around them."""

    def __init__(self) -> None:
        self._held = ""  # white space, dropped before a call and kept before more text
        self._is_after_call = False

    def push(self, text: str) -> list[Event]:
        text = self._held + text
        if self._is_after_call:
            text = text.lstrip()
        ready = text.rstrip()
        self._held = text[len(ready) :]
        if not ready:
            return []
        self._is_after_call = False
        return [Content(ready)]

    def call(self) -> None:
        """Note that a call begins, or has just ended."""
        self._held, self._is_after_call = "", True

    def flush(self) -> list[Event]:
        held, self._held = self._held, ""
        return [Content(held)] if held and not self._is_after_call else []
