"""Rejects the options of a request that this service does not support.

A value that asks for the default behaviour, such as text as the only modality, is accepted.
"""

from collections.abc import Callable
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from chatrpc.v1.limits import LIMITS, Limits
from service.errors import InvalidField, UnsupportedField


class _Option(NamedTuple):
    """An unsupported option, and a function that finds it in a request."""

    path: str
    is_asked: Callable[[chat_pb2.ChatCompletionParams], bool]


_UNSERVED = (
    _Option("modalities", lambda p: any(m != chat_pb2.MODALITY_TEXT for m in p.modalities)),
    _Option("audio", lambda p: p.HasField("audio")),
    _Option("prediction", lambda p: p.HasField("prediction")),
)


def check_unsupported(params: chat_pb2.ChatCompletionParams) -> None:
    """Reject the first unsupported option.

    Raises:
        UnsupportedField: The option is not supported.
        InvalidField: Metadata or an identifier is too large.
    """
    for option in _UNSERVED:
        if option.is_asked(params):
            raise UnsupportedField(option.path, "is not supported by this service.")
    _check_metadata(params)
    for name in ("user", "safety_identifier", "prompt_cache_key", "service_tier"):
        check_identifier(name, getattr(params, name))


def check_identifier(name: str, value: str) -> None:
    """Check the length of an identifier. The service ignores its value.

    Raises:
        InvalidField: It is too long.
    """
    max_size = LIMITS[f"ChatCompletionParams.{name}"].max_size
    if len(value) > max_size:
        raise InvalidField(name, f"has at most {max_size} characters.")


def _check_metadata(params: chat_pb2.ChatCompletionParams) -> None:
    limits = LIMITS["ChatCompletionParams.metadata"]
    if len(params.metadata) > limits.max_size:
        raise InvalidField("metadata", f"has at most {limits.max_size} pairs.")
    keys, values = limits.key or Limits(), limits.element or Limits()
    for key, value in params.metadata.items():
        if len(key) > keys.max_size or len(value) > values.max_size:
            raise InvalidField(
                "metadata",
                f"Its keys have at most {keys.max_size} characters and values {values.max_size}.",
            )
