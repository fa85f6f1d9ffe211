"""Decodes sampling parameters: protobuf to the domain.

The field of an error begins with `sampling.`.
"""

from collections.abc import Sequence
from dataclasses import fields, replace

from chatrpc.v1 import chat_pb2
from chatrpc.v1.limits import LIMITS, Limits
from service.domain.backend import ModelSpec
from service.domain.sampling import SamplingParams
from service.errors import InvalidField

_MAX_N = int(LIMITS["SamplingParams.n"].maximum)

_RENAMED = {"max_completion_tokens": "max_tokens"}
_LISTS = frozenset(("logit_bias", "allowed_token_ids", "bad_words", "stop", "stop_token_ids"))
_DOMAIN_NAMES = frozenset(field.name for field in fields(SamplingParams))
# The scalars that are copied unchanged: the name in the domain, by the name in the proto.
NAMES = {
    field.name: name
    for field in chat_pb2.SamplingParams.DESCRIPTOR.fields
    if (name := _RENAMED.get(field.name, field.name)) in _DOMAIN_NAMES - _LISTS
}


def sampling_params(proto: chat_pb2.SamplingParams, spec: ModelSpec) -> SamplingParams:
    """Return the parameters of a request, with the model's defaults where it sets none.

    Raises:
        InvalidField: The first error found.
    """
    given = {field.name: value for field, value in proto.ListFields()}
    for name, value in given.items():
        limits = LIMITS.get(f"SamplingParams.{name}")
        if name in NAMES and limits is not None and not limits.allow(value):
            raise InvalidField(f"sampling.{name}", f"must be {limits.range}, not {value:g}.")
    if proto.HasField("max_completion_tokens") and proto.min_tokens > proto.max_completion_tokens:
        raise InvalidField(
            "sampling.min_tokens",
            f"must be at most the limit of generated tokens, which is "
            f"{proto.max_completion_tokens}, not {proto.min_tokens}.",
        )
    return replace(
        spec.sampling_defaults,
        given=frozenset(_RENAMED.get(name, name) for name in given) & _DOMAIN_NAMES,
        **{NAMES[name]: value for name, value in given.items() if name in NAMES},
        logit_bias=_logit_bias(proto, spec.vocab_size),
        allowed_token_ids=_allowed_token_ids(proto, spec.vocab_size),
        bad_words=_strings(proto.bad_words, "bad_words"),
        stop=_strings(proto.stop, "stop"),
        stop_token_ids=_stop_token_ids(proto, spec.vocab_size),
    )


def num_choices(sampling: chat_pb2.SamplingParams, max_choices: int = _MAX_N) -> int:
    """Return the number of choices that a request asks for.

    Args:
        max_choices: Maximum number of choices that the backend supports.

    Raises:
        InvalidField: The number is 0 or too large.
    """
    n = sampling.n if sampling.HasField("n") else 1
    most = min(max_choices, _MAX_N)
    if not 1 <= n <= most:
        raise InvalidField("sampling.n", f"must be between 1 and {most}, not {n}.")
    return n


def check_token_ids(token_ids: Sequence[int], vocab_size: int | None, path: str) -> None:
    """Raise InvalidField for the first id that the vocabulary does not have."""
    if vocab_size is not None and token_ids and max(token_ids) >= vocab_size:
        i = next(i for i, token_id in enumerate(token_ids) if token_id >= vocab_size)
        raise InvalidField(
            f"{path}[{i}]", f"{token_ids[i]} is not a token id; the vocabulary has {vocab_size}."
        )


def _logit_bias(proto: chat_pb2.SamplingParams, vocab_size: int | None) -> dict[int, float]:
    limits = LIMITS["SamplingParams.logit_bias"]
    each = limits.element or Limits()
    if len(proto.logit_bias) > limits.max_size:
        raise InvalidField("sampling.logit_bias", f"has at most {limits.max_size} tokens.")
    for token_id, bias in proto.logit_bias.items():
        if vocab_size is not None and token_id >= vocab_size:
            raise InvalidField(
                "sampling.logit_bias",
                f"{token_id} is not a token id; the vocabulary has {vocab_size}.",
            )
        if not each.allow(bias):
            raise InvalidField(
                "sampling.logit_bias",
                f"A bias must be {each.range}; that of the token {token_id} is {bias:g}.",
            )
    return dict(proto.logit_bias)


def _allowed_token_ids(
    proto: chat_pb2.SamplingParams, vocab_size: int | None
) -> frozenset[int] | None:
    if vocab_size is not None and len(proto.allowed_token_ids) > vocab_size:
        raise InvalidField(
            "sampling.allowed_token_ids", f"The vocabulary has only {vocab_size} tokens."
        )
    check_token_ids(proto.allowed_token_ids, vocab_size, "sampling.allowed_token_ids")
    return frozenset(proto.allowed_token_ids) or None


def _stop_token_ids(proto: chat_pb2.SamplingParams, vocab_size: int | None) -> frozenset[int]:
    max_size = LIMITS["SamplingParams.stop_token_ids"].max_size
    if len(proto.stop_token_ids) > max_size:
        raise InvalidField("sampling.stop_token_ids", f"At most {max_size} stop tokens are taken.")
    check_token_ids(proto.stop_token_ids, vocab_size, "sampling.stop_token_ids")
    return frozenset(proto.stop_token_ids)


def _strings(strings: Sequence[str], name: str) -> tuple[str, ...]:
    limits = LIMITS[f"SamplingParams.{name}"]
    each = limits.element or Limits()
    if len(strings) > limits.max_size:
        raise InvalidField(f"sampling.{name}", f"has at most {limits.max_size} strings.")
    for i, string in enumerate(strings):
        if not each.min_size <= len(string) <= each.max_size:
            raise InvalidField(
                f"sampling.{name}[{i}]",
                f"Each string has {each.min_size} to {each.max_size} characters.",
            )
    return tuple(strings)
