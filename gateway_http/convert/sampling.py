"""Converts the fields that chat and text completions share to the proto's messages."""

from collections.abc import Iterable

import msgspec

from chatrpc.v1 import chat_pb2
from gateway_http.convert.aliases import first_given
from gateway_http.convert.json_text import raw_text
from gateway_http.convert.unsupported import reject_given
from gateway_http.protocol import sampling as openai
from gateway_http.protocol.error import InvalidRequest
from gateway_http.protocol.responses_request import ResponseJsonSchemaFormat, ResponsesRequest

# Alternatives to unsupported parameters, for the error message.
_HINTS = {
    "functions": "Use 'tools'.",
    "function_call": "Use 'tool_choice'.",
    "guided_json": "Use 'structured_outputs' or 'response_format'.",
    "guided_regex": "Use 'structured_outputs'.",
    "guided_choice": "Use 'structured_outputs'.",
    "guided_grammar": "Use 'structured_outputs'.",
    "thinking_token_budget": "Use 'reasoning_effort', or limit all tokens.",
    "no_stop_trim": "Use 'include_stop_str_in_output'.",
    "n_probs": "Use 'logprobs'.",
    "typical_p": "Use 'top_p' or 'min_p'.",
    "dynatemp_range": "Use 'temperature'.",
    "xtc_probability": "Use 'top_p' or 'min_p'.",
    "dry_multiplier": "Use 'frequency_penalty' or 'repetition_penalty'.",
}

# The fields with the same name in both APIs. `sampling_params` copies them, except a few that it
# converts. A new parameter needs no change here.
_COPIED = tuple(
    field.name
    for field in chat_pb2.SamplingParams.DESCRIPTOR.fields
    if field.name in openai.SamplingParameters.__struct_fields__
)


# Other servers' names of the fields of `structured_outputs`.
_FORMAT_NAMES = {"regex": "regex", "ebnf": "grammar", "grammar": "grammar", "json_schema": "json"}


def check_supported(request: openai.GenerationRequest, unsupported: Iterable[str]) -> None:
    """Check that a request has no unsupported parameter, and no stream options without a stream.

    Args:
        request: The request.
        unsupported: The names of known parameters that are not supported.

    Raises:
        InvalidRequest: The request has one of them.
    """
    reject_given(request, unsupported, _HINTS)
    check_stream_options(request)


def check_stream_options(request: openai.GenerationRequest | ResponsesRequest) -> None:
    """Raise InvalidRequest if a request has stream options without a stream."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )


def sampling_params(
    request: openai.SamplingParameters,
    max_completion_tokens: int | None = None,
    unlimited: int | None = None,
) -> chat_pb2.SamplingParams:
    """Convert sampling parameters.

    Args:
        request: The request.
        max_completion_tokens: The newer name of `max_tokens`, which takes precedence.
        unlimited: The value for an output that only the context length limits.
    """
    limit = first_given(max_completion_tokens, request.max_tokens, request.n_predict)
    fields = {name: getattr(request, name) for name in _COPIED}
    fields |= {
        "top_k": 0 if request.top_k == -1 else request.top_k,
        "repetition_penalty": first_given(request.repetition_penalty, request.repeat_penalty),
        "max_completion_tokens": unlimited if limit == -1 else limit,
        "stop": stop_strings(request.stop),
    }
    return chat_pb2.SamplingParams(**fields)


def stop_strings(stop: str | list[str] | None) -> list[str] | None:
    """Return the stop strings without empty ones: user interfaces send empty fields."""
    if isinstance(stop, str):
        return [stop] if stop else None
    return stop


def response_format(request: openai.GenerationRequest) -> chat_pb2.ResponseFormat | None:
    """Convert `response_format`, or another form of it. Return None if all are absent.

    Raises:
        InvalidRequest: Several are present, or `structured_outputs` has not exactly one field.
    """
    given = _given_formats(request)
    if len(given) > 1:
        first, second, *_ = given
        raise InvalidRequest(f"Send '{first}' or '{second}', not both.", second, "invalid_value")
    if request.structured_outputs is not None:
        return _structured(request.structured_outputs)
    if given and given[0] in _FORMAT_NAMES:
        alias = _FORMAT_NAMES[given[0]]
        return _structured(openai.StructuredOutputs(**{alias: getattr(request, given[0])}))
    match request.response_format:
        case None:
            return None
        case openai.TextFormat():
            return chat_pb2.ResponseFormat(text=chat_pb2.TextFormat())
        case openai.JsonObjectFormat():
            return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
        case openai.JsonSchemaFormat(json_schema=wanted):
            return json_schema_format(wanted)


def _given_formats(request: openai.GenerationRequest) -> list[str]:
    """Return the names of the fields of a request that give a response format."""
    is_given = {
        "response_format": request.response_format is not None,
        "structured_outputs": request.structured_outputs is not None,
        "regex": bool(request.regex),
        "ebnf": bool(request.ebnf),
        "grammar": bool(request.grammar),
        "json_schema": raw_text(request.json_schema) not in ("", '""'),
    }
    return [name for name, is_one in is_given.items() if is_one]


def json_schema_format(
    wanted: openai.JsonSchema | ResponseJsonSchemaFormat,
) -> chat_pb2.ResponseFormat:
    """Convert a response format that is a JSON Schema with its name."""
    return chat_pb2.ResponseFormat(
        json_schema=chat_pb2.JsonSchemaFormat(
            name=wanted.name,
            description=wanted.description or "",
            schema_json=raw_text(wanted.schema),
            strict=wanted.strict,
        )
    )


def _structured(wanted: openai.StructuredOutputs) -> chat_pb2.ResponseFormat:
    schema = raw_text(wanted.json)
    if schema.startswith('"'):
        schema = msgspec.json.decode(schema, type=str)
    given = [
        name
        for name in wanted.__struct_fields__
        if name != "json" and getattr(wanted, name) not in (None, False)
    ]
    given += ["json"] if schema else []
    if len(given) != 1:
        raise InvalidRequest(
            "Exactly one field of 'structured_outputs' must be given.",
            "structured_outputs",
            "invalid_value",
        )
    if schema:
        return chat_pb2.ResponseFormat(json_schema=chat_pb2.JsonSchemaFormat(schema_json=schema))
    if wanted.regex is not None:
        return chat_pb2.ResponseFormat(regex=wanted.regex)
    if wanted.grammar is not None:
        return chat_pb2.ResponseFormat(grammar=wanted.grammar)
    if wanted.choice is not None:
        return chat_pb2.ResponseFormat(choice=chat_pb2.ChoiceFormat(choices=wanted.choice))
    return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())


def sent_names(request: openai.GenerationRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters that have several names.

    For example, an error about `max_completion_tokens` names `max_tokens` if the client sent
    `max_tokens`. See `gateway_http.protocol.params.param_of`.
    """
    names = {}
    if getattr(request, "max_completion_tokens", None) is None:
        if request.max_tokens is not None:
            names["max_completion_tokens"] = "max_tokens"
        elif request.n_predict is not None:
            names["max_completion_tokens"] = "n_predict"
    if request.repetition_penalty is None and request.repeat_penalty is not None:
        names["repetition_penalty"] = "repeat_penalty"
    if request.structured_outputs is not None:
        names["response_format.json_schema.schema"] = "structured_outputs.json"
        names["response_format.json_schema"] = "structured_outputs.json"
        names["response_format"] = "structured_outputs"
    for name in _given_formats(request):
        if name in _FORMAT_NAMES:
            names["response_format.json_schema.schema"] = name
            names[f"structured_outputs.{_FORMAT_NAMES[name]}"] = name
            names["response_format"] = name
    return names
