"""Converts the bodies of Anthropic's Messages API to the proto's parameters."""

from chatrpc.v1 import chat_pb2, model_service_pb2
from gateway_http.convert import anthropic_prompt
from gateway_http.convert.json_text import raw_text
from gateway_http.convert.requests import EFFORTS
from gateway_http.convert.unsupported import reject_given
from gateway_http.protocol import anthropic
from gateway_http.protocol.error import InvalidRequest

# Up to this many tokens of thinking mean this effort.
_BUDGETS = (
    (4096, chat_pb2.REASONING_EFFORT_LOW),
    (16384, chat_pb2.REASONING_EFFORT_MEDIUM),
)
# The edits that the chat template makes by itself.
_EDITS = {"clear_thinking_20251015"}

# The client's names of parameters, by OpenAI's; see `gateway_http.protocol.params.param_of`.
_NAMES = {
    "max_completion_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format.json_schema.schema": "output_config.format.schema",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "user": "metadata.user_id",
    "continue_final_message": "messages",
}


def params(request: anthropic.MessagesRequest) -> chat_pb2.ChatCompletionParams:
    """Convert a body. The result has no model: the service may have another name for it.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    reject_given(request, anthropic.UNSUPPORTED)
    _check_edits(request.context_management)
    choice = request.tool_choice
    is_single = isinstance(choice, anthropic.AnyToolChoice) and choice.disable_parallel_tool_use
    return chat_pb2.ChatCompletionParams(
        messages=anthropic_prompt.chat_messages(request),
        sampling=chat_pb2.SamplingParams(
            max_completion_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            stop=request.stop_sequences,
        ),
        tools=anthropic_prompt.tools(request),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=False if is_single else None,
        response_format=_response_format(request.output_config),
        prompt=_prompt_options(request),
        reasoning_effort=_effort(request),
        user=None if request.metadata is None else request.metadata.user_id,
    )


def tokenize_request(
    request: anthropic.CountTokensRequest,
) -> model_service_pb2.TokenizeRequest:
    """Convert a body whose tokens are to be counted. The result has no model.

    Raises:
        InvalidRequest: The proto has no equivalent of a field.
    """
    _check_edits(request.context_management)
    return model_service_pb2.TokenizeRequest(
        conversation=model_service_pb2.Conversation(
            messages=anthropic_prompt.chat_messages(request),
            prompt=_prompt_options(request),
            tools=anthropic_prompt.tools(request),
            reasoning_effort=_effort(request),
        )
    )


def sent_names(request: anthropic.Prompt) -> dict[str, str]:
    """Return the client's names of parameters, for errors; see `param_of`."""
    config = request.output_config
    effort = "thinking" if config is None or config.effort is None else "output_config.effort"
    return anthropic_prompt.sent_names(request) | _NAMES | {"reasoning_effort": effort}


def _check_edits(management: anthropic.ContextManagement | None) -> None:
    for i, edit in enumerate([] if management is None else management.edits):
        if edit.type not in _EDITS:
            param = f"context_management.edits[{i}].type"
            raise InvalidRequest(
                f"Unsupported value for '{param}': the edit '{edit.type[:64]}' is not supported.",
                param,
                "unsupported_value",
            )


def _prompt_options(request: anthropic.Prompt) -> chat_pb2.PromptOptions | None:
    if anthropic_prompt.continues_last(request):
        return chat_pb2.PromptOptions(continue_final_message=True)
    return None


def _tool_choice(choice: anthropic.ToolChoice | None) -> chat_pb2.ToolChoice | None:
    match choice:
        case None:
            return None
        case anthropic.ToolChoiceTool(name=name):
            return chat_pb2.ToolChoice(function_name=name)
        case anthropic.ToolChoiceAny():
            return chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_REQUIRED)
        case anthropic.ToolChoiceNone():
            return chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NONE)
        case anthropic.ToolChoiceAuto():
            return chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_AUTO)


def _response_format(config: anthropic.OutputConfig | None) -> chat_pb2.ResponseFormat | None:
    if config is None or config.format is None:
        return None
    return chat_pb2.ResponseFormat(
        json_schema=chat_pb2.JsonSchemaFormat(
            name="output", schema_json=raw_text(config.format.schema), strict=True
        )
    )


def _effort(request: anthropic.Prompt) -> chat_pb2.ReasoningEffort.ValueType:
    """Return the reasoning effort: none if thinking is disabled, else that of `output_config`, else
    that of the budget of tokens."""
    if isinstance(request.thinking, anthropic.ThinkingDisabled):
        return chat_pb2.REASONING_EFFORT_NONE
    if request.output_config is not None and request.output_config.effort is not None:
        return EFFORTS[request.output_config.effort]
    if isinstance(request.thinking, anthropic.ThinkingEnabled):
        for most, effort in _BUDGETS:
            if request.thinking.budget_tokens <= most:
                return effort
        return chat_pb2.REASONING_EFFORT_HIGH
    return chat_pb2.REASONING_EFFORT_UNSPECIFIED
