"""The wire's sampling parameters to the domain's. Pure; an error's field begins `sampling.`."""

from collections.abc import Sequence
from dataclasses import replace

from chatrpc.v1 import chat_pb2
from service.domain.backend import ModelSpec
from service.domain.sampling import SamplingParams
from service.errors import InvalidField

MAX_N = 128
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_LENGTH = 256  # characters
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 64

# The scalars that are taken over as they are, by the domain's names.
_NAMES = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "max_completion_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "include_stop_str_in_output": "include_stop_str_in_output",
    "skip_special_tokens": "skip_special_tokens",
}
_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
_LARGEST_BIAS = 100.0
# A logit times more than this could leave the range of a float.
_LARGEST_REPETITION_PENALTY = 1000.0


def sampling_params(proto: chat_pb2.SamplingParams, spec: ModelSpec) -> SamplingParams:
    """The parameters, the model's defaults where the request says nothing.

    Raises:
        InvalidField: the first mistake found.
    """
    given = {field.name: value for field, value in proto.ListFields()}
    for name, (low, high) in _RANGES.items():
        _check(name, low <= given.get(name, low) <= high, f"between {low:g} and {high:g}", given)
    _check(
        "repetition_penalty",
        0.0 < given.get("repetition_penalty", 1.0) <= _LARGEST_REPETITION_PENALTY,
        f"above 0 and at most {_LARGEST_REPETITION_PENALTY:g}",
        given,
    )
    _check("max_completion_tokens", given.get("max_completion_tokens", 1) >= 1, "at least 1", given)
    if proto.HasField("max_completion_tokens"):
        limit = proto.max_completion_tokens
        text = f"at most the limit of generated tokens, which is {limit}"
        _check("min_tokens", proto.min_tokens <= limit, text, given)
    return replace(
        spec.sampling_defaults,
        **{_NAMES[name]: value for name, value in given.items() if name in _NAMES},
        logit_bias=_logit_bias(proto, spec.vocab_size),
        allowed_token_ids=_allowed_token_ids(proto, spec.vocab_size),
        bad_words=_strings(proto.bad_words, "bad_words", MAX_BAD_WORDS),
        stop=_strings(proto.stop, "stop", MAX_STOP_STRINGS),
        stop_token_ids=_stop_token_ids(proto, spec.vocab_size),
    )


def num_choices(sampling: chat_pb2.SamplingParams, max_choices: int = MAX_N) -> int:
    """How many choices a request asks for.

    Args:
        max_choices: How many the service has room for.

    Raises:
        InvalidField: There are none, or more than may be.
    """
    n = sampling.n if sampling.HasField("n") else 1
    most = min(max_choices, MAX_N)
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


def _check(name: str, is_right: bool, expected: str, given: dict[str, float]) -> None:
    """`is_right` has been computed so that it is false for NaN."""
    if not is_right:
        raise InvalidField(f"sampling.{name}", f"must be {expected}, not {given[name]:g}.")


def _logit_bias(proto: chat_pb2.SamplingParams, vocab_size: int | None) -> dict[int, float]:
    if len(proto.logit_bias) > MAX_LOGIT_BIASES:
        raise InvalidField("sampling.logit_bias", f"has at most {MAX_LOGIT_BIASES} tokens.")
    for token_id, bias in proto.logit_bias.items():
        if vocab_size is not None and token_id >= vocab_size:
            raise InvalidField(
                "sampling.logit_bias",
                f"{token_id} is not a token id; the vocabulary has {vocab_size}.",
            )
        if not -_LARGEST_BIAS <= bias <= _LARGEST_BIAS:
            raise InvalidField(
                "sampling.logit_bias",
                f"A bias must be between -100 and 100; that of the token {token_id} is {bias:g}.",
            )
    return dict(proto.logit_bias)


def _allowed_token_ids(
    proto: chat_pb2.SamplingParams, vocab_size: int | None
) -> frozenset[int] | None:
    if vocab_size is not None and len(proto.allowed_token_ids) > vocab_size:
        raise InvalidField(
            "sampling.allowed_token_ids", f"The vocabulary has {vocab_size} tokens alone."
        )
    check_token_ids(proto.allowed_token_ids, vocab_size, "sampling.allowed_token_ids")
    return frozenset(proto.allowed_token_ids) or None


def _stop_token_ids(proto: chat_pb2.SamplingParams, vocab_size: int | None) -> frozenset[int]:
    if len(proto.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidField(
            "sampling.stop_token_ids", f"At most {MAX_STOP_TOKEN_IDS} stop tokens are taken."
        )
    check_token_ids(proto.stop_token_ids, vocab_size, "sampling.stop_token_ids")
    return frozenset(proto.stop_token_ids)


def _strings(strings: Sequence[str], name: str, max_strings: int) -> tuple[str, ...]:
    if len(strings) > max_strings:
        raise InvalidField(f"sampling.{name}", f"has at most {max_strings} strings.")
    for i, string in enumerate(strings):
        if not 1 <= len(string) <= MAX_STOP_STRING_LENGTH:
            raise InvalidField(
                f"sampling.{name}[{i}]",
                f"Each string has 1 to {MAX_STOP_STRING_LENGTH} characters.",
            )
    return tuple(strings)
