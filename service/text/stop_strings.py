"""Where a sequence's text must end because a stop string came up."""

from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class _State:
    """A beginning of a stop string: what the text seen so far ends with."""

    depth: int  # its length in characters
    next: dict[str, "_State"] = field(default_factory=dict)
    fallback: "_State | None" = None  # its longest proper end that begins a stop string too
    complete: str | None = None  # the longest stop string it ends with


class StopStrings:
    """Watches the text of one sequence for stop strings, however it is cut into pieces.

    The match that is complete first ends the text; of several complete at the same character, the
    one that starts first. So the answer depends on the text alone, not on its pieces, and
    generation can end at once: nothing waits for a longer stop string that might still come up.

    This is the automaton of Aho and Corasick: a character costs the same whatever the number of
    stop strings, and the depth of the state reached is how much must be held back.
    """

    def __init__(self, stop: tuple[str, ...], *, is_included: bool = False) -> None:
        """`stop`: the strings, none of them empty. With no strings at all every text passes.

        `is_included`: the text ends behind the match, not before it.
        """
        self.matched: str | None = None  # the stop string that ended the text
        self._is_included = is_included
        self._root = _build(stop)
        self._state = self._root
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece; return what may be delivered now.

        On a match `matched` is set, the text up to it is returned, and nothing from then on.
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
        """Return what was held back. The sequence is over; nothing may be pushed after it."""
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
    """The automaton's root: the state of no text at all, the only one without a fallback."""
    root = _State(depth=0)
    for text in stop:
        state = root
        for char in text:
            state = state.next.setdefault(char, _State(depth=state.depth + 1))
        state.complete = text
    # Breadth first: a fallback is always shallower than its state, so it is finished before it is
    # used.
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
