"""The caller of the call that the current task serves, and what its key permits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from service.domain.backend import Prompt
from service.domain.engine import Caller, EngineTimings


def _everything(_: str) -> bool:
    return True


class GenerationObserver(Protocol):
    """Receives the progress of a call's generation."""

    def note_prompts(self, prompts: Sequence[Prompt], n: int, max_tokens: int | None) -> None:
        """Note the prompts of a generation that is about to be admitted.

        Args:
            n: Number of choices for each prompt.
            max_tokens: Maximum number of tokens of a choice; None if there is none.
        """
        ...

    def note_timings(self, prompt_index: int, timings: EngineTimings) -> None:
        """Note the timings of a prompt's request, as its last output reports them."""
        ...

    def note_abort(self) -> None:
        """Note that the generation has been aborted, although the call is not cancelled."""
        ...


@dataclass(frozen=True, slots=True)
class _Call:
    caller: Caller
    may_use: Callable[[str], bool]
    reserve: Callable[[int], None] | None
    observer: GenerationObserver | None


_OUTSIDE = _Call(Caller(), _everything, None, None)
_current: ContextVar[_Call] = ContextVar("chatrpc_call", default=_OUTSIDE)
_received_bytes: ContextVar[int] = ContextVar("chatrpc_received_bytes", default=0)


def current_caller() -> Caller:
    """Return the caller of this task's call. Outside of a call it is a caller without a name."""
    return _current.get().caller


def received_bytes() -> int:
    """Return the size of this task's request message on the wire, in bytes; 0 outside of a call."""
    return _received_bytes.get()


def note_received(num_bytes: int) -> None:
    """Set the size of this task's request message."""
    _received_bytes.set(num_bytes)


def may_use_model(*names: str) -> bool:
    """Return True if the caller's key permits the model with one of these names."""
    return any(map(_current.get().may_use, names))


def reserve_exactly(
    prompts: Sequence[Prompt], n: int, max_tokens: int | None, max_model_len: int
) -> None:
    """Reserve the tokens that the call may cost, after its prompts are tokenized.

    This replaces the estimate that was reserved before. It does nothing if the caller's key has no
    limit of tokens, or if the backend has not counted the tokens of a prompt.
    """
    reserve = _current.get().reserve
    lengths = [prompt.num_tokens for prompt in prompts if prompt.num_tokens is not None]
    if reserve is None or len(lengths) < len(prompts):
        return
    num_tokens = 0
    for length in lengths:
        room = max(0, max_model_len - length)
        num_tokens += length + n * (room if max_tokens is None else min(max_tokens, room))
    reserve(num_tokens)


def note_prompts(prompts: Sequence[Prompt], n: int, max_tokens: int | None) -> None:
    """Report prompts to the observer of this task's call, if there is one."""
    observer = _current.get().observer
    if observer is not None:
        observer.note_prompts(prompts, n, max_tokens)


def note_timings(prompt_index: int, timings: EngineTimings) -> None:
    """Report timings to the observer of this task's call, if there is one."""
    observer = _current.get().observer
    if observer is not None:
        observer.note_timings(prompt_index, timings)


def note_abort() -> None:
    """Report to the observer of this task's call, if there is one, that it has been aborted."""
    observer = _current.get().observer
    if observer is not None:
        observer.note_abort()


@contextmanager
def acting_for(
    caller: Caller,
    may_use: Callable[[str], bool] = _everything,
    reserve: Callable[[int], None] | None = None,
    observer: GenerationObserver | None = None,
) -> Iterator[None]:
    """Make `caller` the current caller while in the context.

    Args:
        may_use: Takes the id or alias of a model. Returns True if the caller's key permits it.
        reserve: Called with the number of tokens that the call may cost.
        observer: Receives the progress of the call's generation.
    """
    token = _current.set(_Call(caller, may_use, reserve, observer))
    try:
        yield
    finally:
        _current.reset(token)
