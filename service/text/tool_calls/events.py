"""What a parser finds in an answer, in order."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text that belongs to no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. From here on it is a call, whatever follows."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of the arguments, JSON, of the call that began last."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """The arguments of the call are complete."""


Event = Content | CallStart | Arguments | CallEnd


class CallParser(Protocol):
    """Reads one answer, its text in pieces. What it takes for no call comes out as content."""

    def push(self, text: str) -> list[Event]:
        """Take the next piece; return what is certain by now."""
        ...

    def flush(self) -> list[Event]:
        """The answer is over: return what was held back."""
        ...


class ContentText:
    """The content around calls, without the white space between them and it."""

    def __init__(self) -> None:
        self._held = ""  # white space: before a call it goes, before more text it stays
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
        """A call begins, or has just ended."""
        self._held, self._is_after_call = "", True

    def flush(self) -> list[Event]:
        held, self._held = self._held, ""
        return [Content(held)] if held and not self._is_after_call else []
