"""Rejects the options of a request that this service, or its model, does not support.

A value that asks for the default behaviour, such as text as the only modality, is accepted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import Message

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc.v1.limits import LIMITS, Limits
from service.domain.sampling import SamplingParams
from service.errors import InvalidField, UnsupportedField
from service.rpc.decode.limits import check_size
from service.rpc.decode.sampling import NAMES


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


# The values that ask for the default behaviour, or need no support of the model, by the path of
# their field. Of the fields that are not listed, only false asks for it.
_NEUTRAL: Mapping[str, Sequence[Any]] = {
    **{f"sampling.{name}": (getattr(SamplingParams(), field),) for name, field in NAMES.items()},
    "sampling.n": (1,),
    "priority": (0,),
    "cache_salt": ("",),
    "tool_choice": (
        chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO),
        chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NONE),  # the tools are left out
    ),
    "parallel_tool_calls": (True,),
    "prompt.add_generation_prompt": (True,),
    "add_special_tokens": (True,),
}


def check_model_supports(
    params: chat_pb2.ChatCompletionParams | completion_pb2.CompletionParams,
    unsupported_fields: Iterable[str],
) -> None:
    """Reject the first field that the model does not support.

    Args:
        unsupported_fields: See `service.domain.backend.ModelSpec`. Paths that these parameters do
            not have are skipped, since chat and text completions have different fields.

    Raises:
        UnsupportedField: The field is set, to a value that does not ask for the default behaviour.
    """
    for path in sorted(unsupported_fields):
        if _is_set(params, path):
            raise UnsupportedField(path, "is not supported by this model.")


def _is_set(params: Message, path: str) -> bool:
    *parents, name = path.split(".")
    message: Any = params
    for parent in parents:
        if parent not in message.DESCRIPTOR.fields_by_name or not message.HasField(parent):
            return False
        message = getattr(message, parent)
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        return False
    value = getattr(message, name)
    if field.is_repeated or not field.has_presence:
        return bool(value)
    neutral = _NEUTRAL.get(path, (False,) if isinstance(value, bool) else ())
    return bool(message.HasField(name) and value not in neutral)


def check_identifier(name: str, value: str) -> None:
    """Check the length of an identifier. The service ignores its value.

    Raises:
        InvalidField: It is too long.
    """
    check_size(value, f"ChatCompletionParams.{name}", name)


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
