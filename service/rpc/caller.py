"""The caller of the call that the current task serves."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from service.types import Caller

_ANONYMOUS = Caller()
_current: ContextVar[Caller] = ContextVar("chatrpc_caller", default=_ANONYMOUS)


def current_caller() -> Caller:
    """Return the caller of this task's call; one without a name outside of a call."""
    return _current.get()


@contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Make `caller` the current caller while in the context."""
    token = _current.set(caller)
    try:
        yield
    finally:
        _current.reset(token)
