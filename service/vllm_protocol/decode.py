"""Decodes the `Generate` requests of vLLM's protocol.

The field of an error is a path in `GenerateRequest`, such as `sampling_params.top_p`. Errors of
later steps have the names of `chatrpc.v1`; `protocol_field` converts them.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc.v1.limits import LIMITS
from service.domain.backend import ModelSpec
from service.domain.completion import CompletionRequest
from service.domain.sampling import SamplingParams
from service.errors import ContextLengthExceeded, InvalidField, MissingField, UnsupportedField
from service.rpc.decode.sampling import check_token_ids, num_choices, sampling_params
from service.rpc.decode.tools import decoded_format
from service.rpc.decode.unsupported import check_model_supports

# The fields that are served. All others are rejected if a request sets them.
_REQUEST_FIELDS = frozenset(
    ("request_id", "tokenized", "text", "sampling_params", "stream", "data_parallel_rank")
)
# The defaults of the protocol. Those of the model do not apply: `GetModelInfo` returns them, and a
# gateway sends them. Most fields have no presence, so 0 means that they are not set.
_DEFAULTS = SamplingParams(skip_special_tokens=False)
# The scalars that are copied unchanged, except a value that equals the default.
_COPIED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "min_tokens",
    "skip_special_tokens",
    "ignore_eos",
    "include_stop_str_in_output",
)
_LISTS = ("stop", "stop_token_ids")
_NUMBERS_OF_LOGPROBS = ("logprobs", "prompt_logprobs")
_CONSTRAINTS = ("json_schema", "regex", "grammar", "json_object", "choice")
# These have no effect. The first changes only text, and the response has none. The second asks for
# a constraint that begins with the first token, as every constraint does here.
_WITHOUT_EFFECT = ("spaces_between_special_tokens", "grammar_from_first_token")
_SAMPLING_FIELDS = frozenset(
    (
        *_COPIED,
        *_LISTS,
        *_NUMBERS_OF_LOGPROBS,
        *_CONSTRAINTS,
        *_WITHOUT_EFFECT,
        "n",
        "max_tokens",
        "seed",
        "logit_bias",
        "truncate_prompt_tokens",
    )
)
# The names of fields in errors: the beginning in `chatrpc.v1`, and the one in the protocol.
_FIELD_NAMES = (
    (r"sampling\.max_completion_tokens", "sampling_params.max_tokens"),
    (r"sampling\.", "sampling_params."),
    (r"response_format\.json_schema\.schema_json", "sampling_params.json_schema"),
    (r"response_format\.choice\.choices", "sampling_params.choice.choices"),
    (r"response_format\.", "sampling_params."),
    (r"(?=(?:prompt_)?logprobs$)", "sampling_params."),
    (r"(text|tokenized\.input_ids)\[0\]$", r"\1"),
    (r"messages$", "input"),
)


@dataclass(slots=True)
class GenerateParams:
    """The parameters of a `Generate` request, with most of them in the messages of `chatrpc.v1`.

    Attributes:
        model: The id of the served model, since requests name none; "" if it is not loaded yet.
        request_id: The client's name of the request, for `Abort`; may be empty.
        is_streamed: True if the tokens are sent as they are generated.
        prompt: The token ids, or a text.
        truncate_prompt_tokens: Number of tokens to keep of the prompt's end; -1 keeps as many as
            the context has room for; None keeps all.
    """

    model: str
    request_id: str
    is_streamed: bool
    prompt: str | tuple[int, ...]
    sampling: chat_pb2.SamplingParams
    response_format: chat_pb2.ResponseFormat
    num_logprobs: int | None
    num_prompt_logprobs: int | None
    truncate_prompt_tokens: int | None


class GenerateReader:
    """Parses `Generate` requests; stands for their type in the table of RPCs.

    Args:
        model: Returns the id of the served model; "" if it is not loaded yet.
    """

    DESCRIPTOR = vllm_engine_pb2.GenerateRequest.DESCRIPTOR

    def __init__(self, model: Callable[[], str]) -> None:
        self._model = model

    def FromString(self, data: bytes) -> GenerateParams:  # noqa: N802  # as messages call it
        """Return the parameters in the bytes of a `GenerateRequest`.

        Raises:
            DecodeError: The bytes are not a message.
            InvalidField or a subclass: The first error found.
        """
        return generate_params(vllm_engine_pb2.GenerateRequest.FromString(data), self._model())


def generate_params(request: vllm_engine_pb2.GenerateRequest, model: str) -> GenerateParams:
    """Return the parameters of a request.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    given = request.sampling_params
    _check_served(request, _REQUEST_FIELDS, "")
    _check_served(given, _SAMPLING_FIELDS, "sampling_params.")
    if request.data_parallel_rank != 0:
        raise InvalidField("data_parallel_rank", "must be 0, because there is one rank.")
    if given.HasField("max_tokens") and given.max_tokens == 0:
        raise InvalidField("sampling_params.max_tokens", "must be at least 1.")
    sampling = _sampling(given)
    num_choices(sampling)
    return GenerateParams(
        model=model,
        request_id=request.request_id,
        is_streamed=request.stream,
        prompt=_prompt(request),
        sampling=sampling,
        response_format=_response_format(given),
        num_logprobs=given.logprobs if given.HasField("logprobs") else None,
        num_prompt_logprobs=given.prompt_logprobs if given.HasField("prompt_logprobs") else None,
        truncate_prompt_tokens=_truncation(given),
    )


def completion_request(params: GenerateParams, spec: ModelSpec) -> CompletionRequest:
    """Return the text completion with the same tokens.

    Raises:
        InvalidField or a subclass: The first error found.
    """
    check_model_supports(_as_completion(params), spec.unsupported_fields)
    sampling = sampling_params(params.sampling, replace(spec, sampling_defaults=_DEFAULTS))
    truncation = params.truncate_prompt_tokens
    if truncation == -1:
        truncation = max(1, spec.max_model_len - (sampling.max_tokens or 1))
    if not isinstance(params.prompt, str):
        _check_length(params.prompt, spec, is_truncated=truncation is not None)
    return CompletionRequest(
        prompts=(params.prompt,),
        sampling=sampling,
        n=num_choices(params.sampling),
        is_echoed=False,
        num_logprobs=_checked_logprobs(params.num_logprobs, "logprobs", spec),
        num_prompt_logprobs=_checked_logprobs(params.num_prompt_logprobs, "prompt_logprobs", spec),
        returns_token_ids=True,
        adds_special_tokens=True,
        truncate_prompt_tokens=truncation,
        cache_salt="",
        response_format=decoded_format(params.response_format),
        prompts_field="text" if isinstance(params.prompt, str) else "tokenized.input_ids",
    )


def protocol_field(field: str) -> str:
    """Return the name in `GenerateRequest` of a field of an error."""
    for pattern, name in _FIELD_NAMES:
        renamed, count = re.subn(f"^{pattern}", name, field)
        if count:
            return renamed
    return field


def _check_served(message: Any, served: frozenset[str], path: str) -> None:
    for field, _ in message.ListFields():
        if field.name not in served:
            raise UnsupportedField(f"{path}{field.name}", "is not supported by this service.")


def _prompt(request: vllm_engine_pb2.GenerateRequest) -> str | tuple[int, ...]:
    match request.WhichOneof("input"):
        case "tokenized":
            if not request.tokenized.input_ids:
                raise InvalidField("tokenized.input_ids", "A prompt has at least one token.")
            return tuple(request.tokenized.input_ids)
        case "text":
            return request.text
        case _:
            raise MissingField("input")


def _check_length(token_ids: tuple[int, ...], spec: ModelSpec, *, is_truncated: bool) -> None:
    field = "tokenized.input_ids"
    if len(token_ids) >= spec.max_model_len and not is_truncated:
        raise ContextLengthExceeded(len(token_ids), spec.max_model_len, field, "prompt")
    check_token_ids(token_ids, spec.vocab_size, field)


def _sampling(given: vllm_engine_pb2.SamplingParams) -> chat_pb2.SamplingParams:
    """Return the sampling parameters that differ from the defaults of the protocol."""
    sampling = chat_pb2.SamplingParams()
    for field, value in given.ListFields():
        if field.name in _COPIED and value != getattr(_DEFAULTS, field.name):
            setattr(sampling, field.name, value)
    if given.n:
        sampling.n = given.n
    for name in _LISTS:
        getattr(sampling, name).extend(getattr(given, name))
    if given.HasField("max_tokens"):
        sampling.max_completion_tokens = given.max_tokens
    if given.HasField("seed") and given.seed != -1:  # vLLM samples without a seed if it is -1
        sampling.seed = given.seed
    for token_id, bias in given.logit_bias.items():
        if token_id < 0:
            raise InvalidField("sampling_params.logit_bias", f"{token_id} is not a token id.")
        sampling.logit_bias[token_id] = bias
    return sampling


def _checked_logprobs(number: int | None, name: str, spec: ModelSpec) -> int | None:
    most = spec.most_logprobs(int(LIMITS[f"CompletionParams.{name}"].maximum))
    if number is not None and not 0 <= number <= most:
        raise InvalidField(name, f"must be between 0 and {most}.")
    return number


def _as_completion(params: GenerateParams) -> completion_pb2.CompletionParams:
    """Return the options of a request as those of a text completion."""
    completion = completion_pb2.CompletionParams(sampling=params.sampling)
    if params.num_logprobs is not None:
        completion.logprobs = max(0, params.num_logprobs)
    if params.num_prompt_logprobs is not None:
        completion.prompt_logprobs = max(0, params.num_prompt_logprobs)
    if params.response_format.WhichOneof("format"):
        completion.response_format.CopyFrom(params.response_format)
    return completion


def _truncation(given: vllm_engine_pb2.SamplingParams) -> int | None:
    if not given.HasField("truncate_prompt_tokens"):
        return None
    if given.truncate_prompt_tokens == 0 or given.truncate_prompt_tokens < -1:
        raise InvalidField("sampling_params.truncate_prompt_tokens", "must be at least 1, or -1.")
    return given.truncate_prompt_tokens


def _response_format(given: vllm_engine_pb2.SamplingParams) -> chat_pb2.ResponseFormat:
    match given.WhichOneof("constraint"):
        case "json_schema":
            schema = chat_pb2.JsonSchemaFormat(schema_json=given.json_schema, strict=True)
            return chat_pb2.ResponseFormat(json_schema=schema)
        case "json_object":
            if not given.json_object:
                raise InvalidField("sampling_params.json_object", "must be true.")
            return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
        case "regex":
            return chat_pb2.ResponseFormat(regex=given.regex)
        case "grammar":
            return chat_pb2.ResponseFormat(grammar=given.grammar)
        case "choice":
            choice = chat_pb2.ChoiceFormat(choices=given.choice.choices)
            return chat_pb2.ResponseFormat(choice=choice)
        case _:
            return chat_pb2.ResponseFormat()
