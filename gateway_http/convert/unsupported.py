"""Rejects parameters that are known but not supported."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from msgspec import Struct

from gateway_http.protocol.error import UnsupportedParameter

_NO_HINTS: Mapping[str, str] = MappingProxyType({})


def reject_given(body: Struct, names: Iterable[str], hints: Mapping[str, str] = _NO_HINTS) -> None:
    """Raise UnsupportedParameter for the first of the parameters that is not null.

    Args:
        body: The body of a request.
        names: The names of its unsupported parameters.
        hints: What to use instead, by the name of a parameter.
    """
    for name in names:
        if getattr(body, name) is not None:
            raise UnsupportedParameter(name, hints.get(name, ""))
