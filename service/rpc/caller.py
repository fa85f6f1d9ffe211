"""The caller of the call that the current task serves, and the size of its message."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from service.types import Caller

_ANONYMOUS = Caller()
_caller: ContextVar[Caller] = ContextVar("chatrpc_caller", default=_ANONYMOUS)
_received_bytes: ContextVar[int] = ContextVar("chatrpc_received_bytes", default=0)


def current_caller() -> Caller:
    """Return the caller of this task's call; one without a name outside of a call."""
    return _caller.get()


def received_bytes() -> int:
    """Return the size of this task's request message on the wire, in bytes; 0 outside of a call."""
    return _received_bytes.get()


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Make `caller` the current caller while in the context."""
    token = _caller.set(caller)
    try:
        yield
    finally:
        _caller.reset(token)


def note_received(num_bytes: int) -> None:
    """Set the size of this task's request message."""
    _received_bytes.set(num_bytes)
