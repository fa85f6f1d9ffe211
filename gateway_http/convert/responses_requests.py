"""Converts the bodies of OpenAI's Responses API to the proto's parameters."""

from collections.abc import Sequence

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert import response_tools, responses_input
from gateway_http.convert.json_text import json_text
from gateway_http.convert.requests import EFFORTS, TOOL_MODES, VERBOSITIES
from gateway_http.convert.sampling import check_stream_options, json_schema_format, stop_strings
from gateway_http.convert.unsupported import reject_given
from gateway_http.protocol import responses_request as openai
from gateway_http.protocol.error import UnsupportedParameter
from gateway_http.protocol.sampling import JsonObjectFormat

# The client's names of parameters, by those in chat completions; see
# `gateway_http.protocol.params.param_of`.
_NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "reasoning_effort": "reasoning.effort",
    "tool_choice.allowed_tools": "tool_choice",
    "logprobs": "include",
    "messages": "input",
}


def params(
    request: openai.ResponsesRequest, previous: Sequence[openai.Item] = ()
) -> chat_pb2.ChatCompletionParams:
    """Convert a body. The result has no model: the service may have another name for it.

    Args:
        request: The body.
        previous: The items of earlier responses that the input continues.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(request, openai.UNSUPPORTED)
    if request.background:
        raise UnsupportedParameter("background")
    check_stream_options(request)
    text = request.text or openai.TextOptions()
    has_logprobs = _has_logprobs(request)
    return chat_pb2.ChatCompletionParams(
        messages=responses_input.chat_messages(request, previous),
        sampling=chat_pb2.SamplingParams(
            max_completion_tokens=request.max_output_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            min_p=request.min_p,
            presence_penalty=request.presence_penalty,
            frequency_penalty=request.frequency_penalty,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            stop=stop_strings(request.stop),
        ),
        tools=response_tools.functions(request),
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(text),
        logprobs=has_logprobs or None,
        top_logprobs=request.top_logprobs if has_logprobs else None,
        prompt=_prompt_options(request),
        reasoning_effort=_effort(request),
        priority=request.priority,
        cache_salt=request.cache_salt,
        verbosity=VERBOSITIES[text.verbosity],
        user=request.user,
        safety_identifier=request.safety_identifier,
        metadata=request.metadata,
        prompt_cache_key=request.prompt_cache_key,
        service_tier=request.service_tier,
    )


def tokenize_request(
    request: openai.InputTokensRequest, previous: Sequence[openai.Item] = ()
) -> model_service_pb2.TokenizeRequest:
    """Convert a body whose tokens are to be counted. The result has no model.

    Args:
        request: The body.
        previous: The items of earlier responses that the input continues.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(request, ("conversation", "personality"))
    return model_service_pb2.TokenizeRequest(
        conversation=model_service_pb2.Conversation(
            messages=responses_input.chat_messages(request, previous),
            tools=response_tools.functions(request),
            reasoning_effort=_effort(request),
        )
    )


def sent_names(
    request: openai.ResponsePrompt, previous: Sequence[openai.Item] = ()
) -> dict[str, str]:
    """Return the client's names of parameters, for errors; see `param_of` and `params`."""
    messages = responses_input.sent_names(request, previous)
    return messages | response_tools.sent_names(request) | _NAMES


def _has_logprobs(request: openai.ResponsesRequest) -> bool:
    """Return whether a request asks for log probabilities."""
    return bool(request.top_logprobs) or "message.output_text.logprobs" in (request.include or ())


def _tool_choice(choice: openai.ResponseToolChoice | None) -> chat_pb2.ToolChoice | None:
    match choice:
        case None:
            return None
        case openai.FunctionChoice(name=name) | openai.CustomChoice(name=name):
            return chat_pb2.ToolChoice(function_name=name)
        case openai.AllowedToolsOfResponse(mode=mode, tools=tools):
            return chat_pb2.ToolChoice(
                allowed_tools=chat_pb2.AllowedTools(
                    mode=TOOL_MODES[mode], function_names=[tool.name for tool in tools]
                )
            )
        case mode:
            return chat_pb2.ToolChoice(mode=TOOL_MODES[mode])


def _response_format(text: openai.TextOptions) -> chat_pb2.ResponseFormat | None:
    match text.format:
        case JsonObjectFormat():
            return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
        case openai.ResponseJsonSchemaFormat() as wanted:
            return json_schema_format(wanted)
        case _:
            return None


def _prompt_options(request: openai.ResponsesRequest) -> chat_pb2.PromptOptions | None:
    if request.chat_template_kwargs is None:
        return None
    return chat_pb2.PromptOptions(chat_template_kwargs_json=json_text(request.chat_template_kwargs))


def _effort(request: openai.ResponsePrompt) -> chat_pb2.ReasoningEffort.ValueType:
    return EFFORTS[None if request.reasoning is None else request.reasoning.effort]
