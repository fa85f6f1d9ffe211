"""Converts the body of a chat completion to the proto's parameters."""

from chatrpc.v1 import chat_pb2
from gateway_http.convert.aliases import first_given
from gateway_http.convert.json_text import json_text, raw_text
from gateway_http.convert.messages import chat_message, content_parts
from gateway_http.convert.sampling import (
    check_supported,
    response_format,
    sampling_params,
    sent_names,
)
from gateway_http.protocol import request as openai
from gateway_http.protocol.error import UnsupportedParameter
from gateway_http.protocol.sampling import ReasoningEffort

TOOL_MODES = {
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}
EFFORTS = {
    None: chat_pb2.REASONING_EFFORT_UNSPECIFIED,
    "none": chat_pb2.REASONING_EFFORT_NONE,
    "minimal": chat_pb2.REASONING_EFFORT_MINIMAL,
    "low": chat_pb2.REASONING_EFFORT_LOW,
    "medium": chat_pb2.REASONING_EFFORT_MEDIUM,
    "high": chat_pb2.REASONING_EFFORT_HIGH,
    "xhigh": chat_pb2.REASONING_EFFORT_XHIGH,
    "max": chat_pb2.REASONING_EFFORT_MAX,
}
VERBOSITIES = {
    None: chat_pb2.VERBOSITY_UNSPECIFIED,
    "low": chat_pb2.VERBOSITY_LOW,
    "medium": chat_pb2.VERBOSITY_MEDIUM,
    "high": chat_pb2.VERBOSITY_HIGH,
}
_MODALITIES = {"text": chat_pb2.MODALITY_TEXT, "audio": chat_pb2.MODALITY_AUDIO}


def params(request: openai.ChatCompletionRequest) -> chat_pb2.ChatCompletionParams:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    check_supported(request, openai.UNSUPPORTED)
    return chat_pb2.ChatCompletionParams(
        messages=[chat_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)],
        sampling=sampling_params(request, request.max_completion_tokens),
        tools=[function_tool(tool) for tool in request.tools or ()],
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=response_format(request),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        prompt=_prompt(request),
        reasoning_effort=EFFORTS[_effort(request)],
        return_token_ids=request.return_token_ids,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority,
        cache_salt=request.cache_salt,
        modalities=[_MODALITIES[modality] for modality in request.modalities or ()],
        audio=_audio(request.audio),
        prediction=_prediction(request.prediction),
        verbosity=VERBOSITIES[request.verbosity],
        user=request.user,
        safety_identifier=request.safety_identifier,
        metadata=request.metadata,
        store=request.store,
        prompt_cache_key=request.prompt_cache_key,
        service_tier=request.service_tier,
    )


def _prompt(request: openai.ChatCompletionRequest) -> chat_pb2.PromptOptions:
    kwargs = request.chat_template_kwargs
    if request.enable_thinking is not None:
        kwargs = {"enable_thinking": request.enable_thinking} | (kwargs or {})
    return chat_pb2.PromptOptions(
        chat_template_kwargs_json=None if kwargs is None else json_text(kwargs),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


def _effort(request: openai.ChatCompletionRequest) -> ReasoningEffort | None:
    wanted = request.reasoning or openai.Reasoning()
    if wanted.max_tokens is not None:
        raise UnsupportedParameter("reasoning.max_tokens", "Use 'reasoning.effort'.")
    of_enabled: ReasoningEffort | None = "none" if wanted.enabled is False else None
    return first_given(request.reasoning_effort, wanted.effort, of_enabled)


def chat_names(request: openai.ChatCompletionRequest) -> dict[str, str]:
    """Return the names under which a client sent parameters; see `sampling.sent_names`."""
    names = sent_names(request)
    if request.reasoning_effort is None and request.reasoning is not None:
        names["reasoning_effort"] = "reasoning.effort"
    if request.enable_thinking is not None and request.chat_template_kwargs is None:
        names["chat_template_kwargs"] = "enable_thinking"
    return names


def _audio(wanted: openai.AudioOutput | None) -> chat_pb2.AudioOutput | None:
    if wanted is None:
        return None
    return chat_pb2.AudioOutput(voice=wanted.voice, format=wanted.format)


def _prediction(expected: openai.Prediction | None) -> chat_pb2.Prediction | None:
    if expected is None:
        return None
    return chat_pb2.Prediction(content=content_parts(expected.content, "prediction.content"))


def function_tool(tool: openai.FunctionTool) -> chat_pb2.Tool:
    """Convert a tool."""
    function = tool.function
    return chat_pb2.Tool(
        function=chat_pb2.FunctionDefinition(
            name=function.name,
            description=function.description or "",
            parameters_json_schema=raw_text(function.parameters),
            strict=function.strict,
        )
    )


def _tool_choice(choice: openai.ToolChoice | None) -> chat_pb2.ToolChoice | None:
    match choice:
        case None:
            return None
        case openai.NamedTool(function=function):
            return chat_pb2.ToolChoice(function_name=function.name)
        case openai.AllowedToolsChoice(allowed_tools=allowed):
            return chat_pb2.ToolChoice(
                allowed_tools=chat_pb2.AllowedTools(
                    mode=TOOL_MODES[allowed.mode],
                    function_names=[tool.function.name for tool in allowed.tools],
                )
            )
        case mode:
            return chat_pb2.ToolChoice(mode=TOOL_MODES[mode])
