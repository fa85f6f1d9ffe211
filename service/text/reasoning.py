"""A model's reasoning before its output, and the markers that separate the two."""

from dataclasses import dataclass
from enum import Enum, auto

from service.domain.model import ReasoningFormat


@dataclass(frozen=True, slots=True)
class ReasoningMarkers:
    """The marker texts before and after the reasoning."""

    start: str
    end: str


MARKERS = {
    ReasoningFormat.THINK: ReasoningMarkers("<think>", "</think>"),
    ReasoningFormat.MISTRAL: ReasoningMarkers("[THINK]", "[/THINK]"),
}


class Thinking(Enum):
    """The start of the model's output, as the end of the prompt determines it."""

    OPEN = auto()  # the prompt opens the reasoning, so the output begins with it
    POSSIBLE = auto()  # the output may begin with a start marker
    CLOSED = auto()  # the prompt closes the reasoning, so the output has none


def thinking_after(prompt: str, markers: ReasoningMarkers) -> Thinking:
    """Return how the output starts after a prompt, which is the text that the template rendered."""
    end = prompt.rstrip()
    if end.endswith(markers.start):
        return Thinking.OPEN
    return Thinking.CLOSED if end.endswith(markers.end) else Thinking.POSSIBLE


def detect_reasoning_format(template: str) -> ReasoningFormat:
    """Return the format whose end marker is in the template's source, `NONE` if there is none."""
    return next(
        (name for name, markers in MARKERS.items() if markers.end in template), ReasoningFormat.NONE
    )


def partial_marker_length(text: str, marker: str) -> int:
    """Return the number of characters at the end of `text` that may begin `marker`."""
    for length in range(min(len(text), len(marker) - 1), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0


class _State(Enum):
    START = auto()  # before the first character that is not white space
    REASONING = auto()
    OUTPUT = auto()


class ReasoningText:
    """Splits the text of one output, which comes in pieces, into reasoning and the rest.

    The markers are in neither part, nor is the white space next to them.
    """

    def __init__(self, markers: ReasoningMarkers, *, is_open: bool) -> None:
        """Create the splitter. `is_open` is True if the prompt contains the start marker."""
        self.num_tokens = 0  # tokens of the reasoning, including its markers
        self._markers = markers
        self._state = _State.REASONING if is_open else _State.START
        self._has_reasoning = is_open
        self._is_empty = True  # True until the current part has text
        self._held = ""
        self._num_held_tokens = 0

    @property
    def is_over(self) -> bool:
        """True if the reasoning has ended, or the output has none."""
        return self._state is _State.OUTPUT

    def push(self, text: str, num_tokens: int) -> tuple[str, str]:
        """Split the text of the next tokens. Return the reasoning and the rest.

        Text that may be part of a marker is held back.
        """
        before = self._state
        reasoning = output = ""
        if self._state is _State.START:
            self._num_held_tokens += num_tokens
            text = self._start(text)
        if self._state is _State.REASONING:
            reasoning, text = self._reasoning(text)
        if self._state is _State.OUTPUT:
            output = self._output(text)
        if before is _State.REASONING:
            self.num_tokens += num_tokens
        elif before is _State.START and self._has_reasoning:
            self.num_tokens += self._num_held_tokens
        return reasoning, output

    def flush(self) -> tuple[str, str]:
        """Return the text that was held back, at the end of the output."""
        held, self._held = self._held, ""
        return (held, "") if self._state is _State.REASONING else ("", held)

    def _start(self, text: str) -> str:
        """Return the text after the start marker, or all text if there is no marker.

        The result is empty while the marker may still come.
        """
        text = self._held + text
        begun = text.lstrip()
        self._held = ""
        if begun.startswith(self._markers.start):
            self._state, self._has_reasoning = _State.REASONING, True
            return begun.removeprefix(self._markers.start)
        if self._markers.start.startswith(begun):
            self._held = text
            return ""
        self._state, self._is_empty = _State.OUTPUT, False
        return text

    def _reasoning(self, text: str) -> tuple[str, str]:
        text = self._held + text
        if self._is_empty:
            text = text.lstrip()
        reasoning, marker, rest = text.partition(self._markers.end)
        if marker:
            self._held, self._state, self._is_empty = "", _State.OUTPUT, True
            return reasoning.rstrip(), rest
        ready = text[: len(text) - partial_marker_length(text, self._markers.end)].rstrip()
        self._held = text[len(ready) :]
        self._is_empty = self._is_empty and not ready
        return ready, ""

    def _output(self, text: str) -> str:
        if self._is_empty:
            text = text.lstrip("\n")
        self._is_empty = self._is_empty and not text
        return text
