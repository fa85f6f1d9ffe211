"""Decodes the parameters of text completions: protobuf to the domain.

The field of an error is a path in `CompletionParams`, such as `prompts[0].text`.
"""

from dataclasses import replace

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.backend import ModelSpec
from service.domain.completion import CompletionRequest
from service.domain.sampling import SamplingParams
from service.errors import ContextLengthExceeded, InvalidField, MissingField, UnsupportedField
from service.rpc.decode.limits import check_range
from service.rpc.decode.options import cache_salt, check_alternatives
from service.rpc.decode.sampling import check_token_ids, num_choices, sampling_params
from service.rpc.decode.tools import decoded_format
from service.rpc.decode.unsupported import check_model_supports, check_unsupported

# This is OpenAI's default. Chat completions have no default.
DEFAULT_MAX_TOKENS = 16

_MAX_SEQUENCES = LIMITS["CompletionParams.prompts"].max_size


def completion_request(
    params: completion_pb2.CompletionParams, spec: ModelSpec
) -> CompletionRequest:
    """Check parameters and fill in the defaults.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    _check_options(params)
    check_model_supports(params, spec.unsupported_fields)
    num_sequences(params)
    num_logprobs = _num_logprobs(params, "logprobs", spec)
    num_prompt_logprobs = _num_logprobs(params, "prompt_logprobs", spec)
    if params.echo and num_prompt_logprobs is None and num_logprobs is not None:
        if "prompt_logprobs" in spec.unsupported_fields:
            raise UnsupportedField(
                "echo", "is not supported by this model together with log probabilities."
            )
        num_prompt_logprobs = num_logprobs
    return CompletionRequest(
        prompts=tuple(
            _prompt(prompt, f"prompts[{i}]", spec, is_cut=params.HasField("truncate_prompt_tokens"))
            for i, prompt in enumerate(params.prompts)
        ),
        sampling=_sampling(params, spec),
        n=params.sampling.n if params.sampling.HasField("n") else 1,
        is_echoed=params.echo,
        num_logprobs=num_logprobs,
        num_prompt_logprobs=num_prompt_logprobs,
        returns_token_ids=params.return_token_ids,
        adds_special_tokens=params.add_special_tokens or not params.HasField("add_special_tokens"),
        truncate_prompt_tokens=_truncation(params),
        cache_salt=cache_salt(params.cache_salt),
        response_format=decoded_format(params.response_format),
    )


def num_sequences(
    params: completion_pb2.CompletionParams, max_sequences: int = _MAX_SEQUENCES
) -> int:
    """Return the number of sequences that a request asks for: its prompts times its choices.

    Args:
        max_sequences: Maximum number of sequences that the backend supports.

    Raises:
        MissingField: There is no prompt.
        InvalidField: There are too many sequences.
    """
    if not params.prompts:
        raise MissingField("prompts")
    most = min(max_sequences, _MAX_SEQUENCES)
    n = num_choices(params.sampling, most)
    if len(params.prompts) * n > most:
        raise InvalidField("prompts", f"At most {most} choices are made at once: prompts times n.")
    return len(params.prompts) * n


def _check_options(params: completion_pb2.CompletionParams) -> None:
    """Reject `suffix`, and the unsupported options that chat completions have too, except `n`."""
    if params.suffix:
        raise UnsupportedField("suffix", "is not supported by this service.")
    chat = chat_pb2.ChatCompletionParams(sampling=params.sampling, user=params.user)
    chat.sampling.ClearField("n")
    check_unsupported(chat)


def _prompt(
    proto: completion_pb2.CompletionPrompt, path: str, spec: ModelSpec, *, is_cut: bool
) -> str | tuple[int, ...]:
    """Return a prompt. Its token ids are counted; a text is rejected if it is certainly too long.

    Args:
        is_cut: True if the prompt will be truncated. Then it may have any number of token ids.

    Raises:
        ContextLengthExceeded: The prompt is too long.
        InvalidField: The prompt has no token ids, or ids outside of the vocabulary.
        MissingField: There is no prompt.
    """
    max_model_len = spec.max_model_len
    match proto.WhichOneof("prompt"):
        case "text":
            longest = spec.max_token_chars
            if longest is not None and len(proto.text) >= longest * max_model_len:
                num_tokens = len(proto.text) // longest
                raise ContextLengthExceeded(num_tokens, max_model_len, f"{path}.text", "prompt")
            return proto.text
        case "token_ids":
            ids = proto.token_ids.ids
            if not ids:
                raise InvalidField(f"{path}.token_ids.ids", "A prompt has at least one token.")
            if len(ids) >= max_model_len and not is_cut:
                raise ContextLengthExceeded(
                    len(ids), max_model_len, f"{path}.token_ids.ids", "prompt"
                )
            check_token_ids(ids, spec.vocab_size, f"{path}.token_ids.ids")
            return tuple(ids)
        case None:
            raise MissingField(path)


def _sampling(params: completion_pb2.CompletionParams, spec: ModelSpec) -> SamplingParams:
    wanted = chat_pb2.SamplingParams()
    wanted.CopyFrom(params.sampling)
    if not wanted.HasField("max_completion_tokens"):
        wanted.max_completion_tokens = DEFAULT_MAX_TOKENS
    is_scored_only = wanted.max_completion_tokens == 0
    if is_scored_only:
        if not params.echo:
            raise InvalidField(
                "sampling.max_completion_tokens",
                "must be at least 1 without echo.",
            )
        wanted.max_completion_tokens = 1
    sampling = sampling_params(wanted, spec)
    return replace(sampling, max_tokens=0) if is_scored_only else sampling


def _num_logprobs(
    params: completion_pb2.CompletionParams, name: str, spec: ModelSpec
) -> int | None:
    if not params.HasField(name):  # type: ignore[arg-type]  # `name` is a field
        return None
    number = int(getattr(params, name))
    check_alternatives(name, number, spec)
    return number


def _truncation(params: completion_pb2.CompletionParams) -> int | None:
    if not params.HasField("truncate_prompt_tokens"):
        return None
    name, number = "truncate_prompt_tokens", params.truncate_prompt_tokens
    check_range(number, f"CompletionParams.{name}", name)
    return number
