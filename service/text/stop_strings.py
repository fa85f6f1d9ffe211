"""Stop strings: finds the first one in text that comes in pieces."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    """A state of the automaton: a beginning of a stop string with which the text ends."""

    depth: int  # length in characters of this beginning
    next: dict[str, "_State"] = field(default_factory=dict)
    fallback: "_State | None" = None  # state of the longest suffix that begins one
    complete: str | None = None  # the longest stop string that it ends with


class StopStrings:
    """Searches the text of one sequence for stop strings.

    The match that is complete first ends the text. If several are complete at the same character,
    the one that starts first counts. So the result depends only on the text, not on its pieces, and
    generation can stop at once.

    This is the automaton of Aho and Corasick: the cost of a character does not depend on the number
    of stop strings, and the depth of the state is the number of characters to hold back.
    """

    def __init__(self, stop: tuple[str, ...], *, is_included: bool = False) -> None:
        """Build the automaton.

        Args:
            stop: The stop strings, none of them empty. If there are none, all text is returned.
            is_included: If True, the text ends after the match instead of before it.
        """
        self.matched: str | None = None  # the stop string that ended the text
        self._is_included = is_included
        self._root = _build(stop)
        self._state = self._root
        self._held = ""

    def push(self, text: str) -> str:
        """Add a piece. Return the text that may be sent now.

        On a match, `matched` is set and the text up to it is returned. Later calls return "".
        """
        if self.matched is not None:
            return ""
        seen = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            self._state = self._step(self._state, char)
            if self._state.complete is not None:
                self.matched, self._held = self._state.complete, ""
                return seen[: end if self._is_included else end - len(self.matched)]
        num_ready = len(seen) - self._state.depth
        self._held = seen[num_ready:]
        return seen[:num_ready]

    def flush(self) -> str:
        """Return the text that was held back. Call it once, at the end of the sequence."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _step(state: _State, char: str) -> _State:
        while char not in state.next:
            if state.fallback is None:
                return state
            state = state.fallback
        return state.next[char]


def _build(stop: tuple[str, ...]) -> _State:
    """Return the automaton's root: the state of empty text, the only one without a fallback."""
    root = _State(depth=0)
    for text in stop:
        state = root
        for char in text:
            state = state.next.setdefault(char, _State(depth=state.depth + 1))
        state.complete = text
    # Breadth first: a fallback is shallower than its state, so it is complete before it is used.
    queue = deque([root])
    while queue:
        state = queue.popleft()
        for char, child in state.next.items():
            fallback = state.fallback
            while fallback is not None and char not in fallback.next:
                fallback = fallback.fallback
            child.fallback = root if fallback is None else fallback.next[char]
            child.complete = child.complete or child.fallback.complete
            queue.append(child)
    return root
