"""The options of a request that this service does not serve, each refused by name.

A value that asks for what happens anyway (`n` of 1, a penalty of 0) is served, not refused.
"""

from collections.abc import Callable
from typing import NamedTuple

from chatrpc.v1 import chat_pb2
from service.errors import InvalidField, UnsupportedField

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_LENGTH = 64
MAX_METADATA_VALUE_LENGTH = 512
MAX_IDENTIFIER_LENGTH = 512


# Without tools, both come to the same.
_NO_TOOLS = (chat_pb2.ToolChoice.MODE_NONE, chat_pb2.ToolChoice.MODE_AUTO)


class _Option(NamedTuple):
    """An option that is not served, and whether a request asks for it."""

    path: str
    is_asked: Callable[[chat_pb2.ChatCompletionParams], bool]


_UNSERVED = (
    _Option("tools", lambda p: bool(p.tools)),
    _Option(
        "tool_choice",
        lambda p: p.HasField("tool_choice") and p.tool_choice.mode not in _NO_TOOLS,
    ),
    _Option(
        "response_format",
        lambda p: p.response_format.WhichOneof("format") not in {None, "text"},
    ),
    _Option("logprobs", lambda p: p.logprobs),
    _Option("top_logprobs", lambda p: p.HasField("top_logprobs")),
    _Option("return_token_ids", lambda p: p.return_token_ids),
    _Option("prompt_logprobs", lambda p: p.HasField("prompt_logprobs")),
    _Option("priority", lambda p: p.priority != 0),
    _Option("modalities", lambda p: any(m != chat_pb2.MODALITY_TEXT for m in p.modalities)),
    _Option("audio", lambda p: p.HasField("audio")),
    _Option("prediction", lambda p: p.HasField("prediction")),
    _Option("prompt.continue_final_message", lambda p: p.prompt.continue_final_message),
    _Option("prompt.truncate_prompt_tokens", lambda p: p.prompt.HasField("truncate_prompt_tokens")),
    _Option("sampling.presence_penalty", lambda p: p.sampling.presence_penalty != 0),
    _Option("sampling.frequency_penalty", lambda p: p.sampling.frequency_penalty != 0),
    _Option(
        "sampling.repetition_penalty",
        lambda p: p.sampling.HasField("repetition_penalty") and p.sampling.repetition_penalty != 1,
    ),
    _Option("sampling.min_tokens", lambda p: p.sampling.min_tokens > 0),
    _Option("sampling.n", lambda p: p.sampling.n > 1),
    _Option("sampling.logit_bias", lambda p: bool(p.sampling.logit_bias)),
    _Option("sampling.include_stop_str_in_output", lambda p: p.sampling.include_stop_str_in_output),
    _Option(
        "sampling.skip_special_tokens",
        lambda p: p.sampling.HasField("skip_special_tokens") and not p.sampling.skip_special_tokens,
    ),
    _Option("sampling.bad_words", lambda p: bool(p.sampling.bad_words)),
    _Option("sampling.allowed_token_ids", lambda p: bool(p.sampling.allowed_token_ids)),
)


def refuse_unserved(params: chat_pb2.ChatCompletionParams) -> None:
    """Raise for the first option that cannot be honoured.

    Raises:
        UnsupportedField: the option is not served.
        InvalidField: it could not be served by anybody.
    """
    for option in _UNSERVED:
        if option.is_asked(params):
            name = option.path.rpartition(".")[-1]
            raise UnsupportedField(option.path, f"{name} is not supported by this service.")
    if params.sampling.HasField("n") and params.sampling.n < 1:
        raise InvalidField("sampling.n", "n must be at least 1.")
    _check_metadata(params)
    for name in ("user", "safety_identifier", "prompt_cache_key", "service_tier"):
        check_identifier(name, getattr(params, name))


def check_identifier(name: str, value: str) -> None:
    """What the caller tells for its own bookkeeping is short, though nothing is made of it."""
    if len(value) > MAX_IDENTIFIER_LENGTH:
        raise InvalidField(name, f"{name} has at most {MAX_IDENTIFIER_LENGTH} characters.")


def _check_metadata(params: chat_pb2.ChatCompletionParams) -> None:
    if len(params.metadata) > MAX_METADATA_PAIRS:
        raise InvalidField("metadata", f"metadata has at most {MAX_METADATA_PAIRS} pairs.")
    for key, value in params.metadata.items():
        if len(key) > MAX_METADATA_KEY_LENGTH or len(value) > MAX_METADATA_VALUE_LENGTH:
            raise InvalidField(
                "metadata",
                f"metadata's keys have at most {MAX_METADATA_KEY_LENGTH} characters and values "
                f"{MAX_METADATA_VALUE_LENGTH}.",
            )
