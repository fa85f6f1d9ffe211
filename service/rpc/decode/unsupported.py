"""The options of a request that this service does not serve, each refused by name.

A value that asks for what happens anyway (`modalities` of text) is served, not refused.
"""

from collections.abc import Callable
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from service.errors import InvalidField, UnsupportedField

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_LENGTH = 64
MAX_METADATA_VALUE_LENGTH = 512
MAX_IDENTIFIER_LENGTH = 512


class _Option(NamedTuple):
    """An option that is not served, and whether a request asks for it."""

    path: str
    is_asked: Callable[[chat_pb2.ChatCompletionParams], bool]


_UNSERVED = (
    _Option("modalities", lambda p: any(m != chat_pb2.MODALITY_TEXT for m in p.modalities)),
    _Option("audio", lambda p: p.HasField("audio")),
    _Option("prediction", lambda p: p.HasField("prediction")),
)


def refuse_unserved(params: chat_pb2.ChatCompletionParams) -> None:
    """Raise for the first option that cannot be honoured.

    Raises:
        UnsupportedField: the option is not served.
        InvalidField: metadata is too large.
    """
    for option in _UNSERVED:
        if option.is_asked(params):
            raise UnsupportedField(option.path, "is not supported by this service.")
    _check_metadata(params)
    for name in ("user", "safety_identifier", "prompt_cache_key", "service_tier"):
        check_identifier(name, getattr(params, name))


def check_identifier(name: str, value: str) -> None:
    """What the caller tells for its own bookkeeping is short, though nothing is made of it."""
    if len(value) > MAX_IDENTIFIER_LENGTH:
        raise InvalidField(name, f"has at most {MAX_IDENTIFIER_LENGTH} characters.")


def _check_metadata(params: chat_pb2.ChatCompletionParams) -> None:
    if len(params.metadata) > MAX_METADATA_PAIRS:
        raise InvalidField("metadata", f"has at most {MAX_METADATA_PAIRS} pairs.")
    for key, value in params.metadata.items():
        if len(key) > MAX_METADATA_KEY_LENGTH or len(value) > MAX_METADATA_VALUE_LENGTH:
            raise InvalidField(
                "metadata",
                f"Its keys have at most {MAX_METADATA_KEY_LENGTH} characters and values "
                f"{MAX_METADATA_VALUE_LENGTH}.",
            )
