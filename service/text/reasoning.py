"""What a model thinks before it answers, told apart from the answer."""

from dataclasses import dataclass
from enum import Enum, auto

from service.domain.model import ReasoningFormat
from service.text.markers import overlap


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """What stands before and after the thoughts."""

    start: str
    end: str


MARKERS = {
    ReasoningFormat.THINK: ReasoningMarkers("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ReasoningMarkers("[THINK]", "[/THINK]"),
}


class Thinking(Enum):
    """What a prompt, by its end, leaves to the model."""

    OPEN = auto()  # it is to think: its first words are thoughts
    POSSIBLE = auto()  # it opens its thoughts itself, if it has any
    CLOSED = auto()  # it is to answer at once


def thinking_after(prompt: str, markers: ReasoningMarkers) -> Thinking:
    """What follows the prompt, a text as the template rendered it."""
    end = prompt.rstrip()
    if end.endswith(markers.start):
        return Thinking.OPEN
    return Thinking.CLOSED if end.endswith(markers.end) else Thinking.POSSIBLE


class _Place(Enum):
    START = auto()  # before the first word
    THOUGHTS = auto()
    ANSWER = auto()


class ReasoningText:
    """One answer's text in pieces, thoughts and answer apart, without the markers between them.

    White space beside a marker belongs to neither.
    """

    def __init__(self, markers: ReasoningMarkers, *, is_open: bool) -> None:
        """`is_open`: the prompt has the start marker already."""
        self.num_tokens = 0  # of the thoughts, their markers included
        self._markers = markers
        self._place = _Place.THOUGHTS if is_open else _Place.START
        self._has_thoughts = is_open
        self._is_empty = True  # of the part that it is in
        self._held = ""
        self._num_held_tokens = 0

    @property
    def is_answer(self) -> bool:
        """Whether the thoughts, if there were any, are over."""
        return self._place is _Place.ANSWER

    def push(self, text: str, num_tokens: int) -> tuple[str, str]:
        """Take the text of the next tokens; the thoughts and the answer that it makes certain."""
        before = self._place
        thoughts = answer = ""
        if self._place is _Place.START:
            self._num_held_tokens += num_tokens
            text = self._start(text)
        if self._place is _Place.THOUGHTS:
            thoughts, text = self._thoughts(text)
        if self._place is _Place.ANSWER:
            answer = self._answer(text)
        if before is _Place.THOUGHTS:
            self.num_tokens += num_tokens
        elif before is _Place.START and self._has_thoughts:
            self.num_tokens += self._num_held_tokens
        return thoughts, answer

    def flush(self) -> tuple[str, str]:
        """The answer is over: what was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._place is _Place.THOUGHTS else ("", held)

    def _start(self, text: str) -> str:
        """What follows the start marker, or all there is without one; nothing while it may come."""
        text = self._held + text
        begun = text.lstrip()
        self._held = ""
        if begun.startswith(self._markers.start):
            self._place, self._has_thoughts = _Place.THOUGHTS, True
            return begun.removeprefix(self._markers.start)
        if self._markers.start.startswith(begun):
            self._held = text
            return ""
        self._place, self._is_empty = _Place.ANSWER, False
        return text

    def _thoughts(self, text: str) -> tuple[str, str]:
        text = self._held + text
        if self._is_empty:
            text = text.lstrip()
        thoughts, marker, rest = text.partition(self._markers.end)
        if marker:
            self._held, self._place, self._is_empty = "", _Place.ANSWER, True
            return thoughts.rstrip(), rest
        ready = text[: len(text) - overlap(text, self._markers.end)].rstrip()
        self._held = text[len(ready) :]
        self._is_empty = self._is_empty and not ready
        return ready, ""

    def _answer(self, text: str) -> str:
        if self._is_empty:
            text = text.lstrip("\n")
        self._is_empty = self._is_empty and not text
        return text
