"""From OpenAI's request to the wire's parameters; what the wire has no place for ends here."""

from chatrpc.v1 import chat_pb2
from gateway_http.convert.messages import chat_message, content_parts, first, json_text
from gateway_http.protocol import request as openai
from gateway_http.protocol.error import InvalidRequest, UnsupportedParameter

_TOOL_MODES = {
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}
_EFFORTS = {
    None: chat_pb2.REASONING_EFFORT_UNSPECIFIED,
    "none": chat_pb2.REASONING_EFFORT_NONE,
    "minimal": chat_pb2.REASONING_EFFORT_MINIMAL,
    "low": chat_pb2.REASONING_EFFORT_LOW,
    "medium": chat_pb2.REASONING_EFFORT_MEDIUM,
    "high": chat_pb2.REASONING_EFFORT_HIGH,
    "xhigh": chat_pb2.REASONING_EFFORT_XHIGH,
    "max": chat_pb2.REASONING_EFFORT_MAX,
}
_VERBOSITIES = {
    None: chat_pb2.VERBOSITY_UNSPECIFIED,
    "low": chat_pb2.VERBOSITY_LOW,
    "medium": chat_pb2.VERBOSITY_MEDIUM,
    "high": chat_pb2.VERBOSITY_HIGH,
}
_MODALITIES = {"text": chat_pb2.MODALITY_TEXT, "audio": chat_pb2.MODALITY_AUDIO}

_INSTEAD = {
    "functions": "Use 'tools'.",
    "function_call": "Use 'tool_choice'.",
    "guided_json": "Use 'structured_outputs' or 'response_format'.",
    "guided_regex": "Use 'structured_outputs'.",
    "guided_choice": "Use 'structured_outputs'.",
    "guided_grammar": "Use 'structured_outputs'.",
    "request_id": "Send the header 'X-Request-Id'.",
}


def params(request: openai.ChatCompletionRequest) -> chat_pb2.ChatCompletionParams:
    """Raises InvalidRequest for what the wire cannot say."""
    _refuse_unserved(request)
    return chat_pb2.ChatCompletionParams(
        model=request.model,
        messages=[chat_message(m, f"messages[{i}]") for i, m in enumerate(request.messages)],
        sampling=_sampling(request),
        tools=[_tool(tool) for tool in request.tools or ()],
        tool_choice=_tool_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_response_format(request),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        prompt=_prompt(request),
        reasoning_effort=_EFFORTS[request.reasoning_effort],
        return_token_ids=request.return_token_ids,
        prompt_logprobs=request.prompt_logprobs,
        priority=request.priority,
        cache_salt=request.cache_salt,
        modalities=[_MODALITIES[modality] for modality in request.modalities or ()],
        audio=_audio(request.audio),
        prediction=_prediction(request.prediction),
        verbosity=_VERBOSITIES[request.verbosity],
        user=request.user,
        safety_identifier=request.safety_identifier,
        metadata=request.metadata,
        store=request.store,
        prompt_cache_key=request.prompt_cache_key,
        service_tier=request.service_tier,
    )


def _refuse_unserved(request: openai.ChatCompletionRequest) -> None:
    for name in openai.UnservedParameters.__struct_fields__:
        if getattr(request, name) is not None:
            raise UnsupportedParameter(name, _INSTEAD.get(name, ""))
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            "stream_options",
            "invalid_value",
        )


def _sampling(request: openai.ChatCompletionRequest) -> chat_pb2.SamplingParams:
    return chat_pb2.SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=0 if request.top_k == -1 else request.top_k,
        min_p=request.min_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        repetition_penalty=first(request.repetition_penalty, request.repeat_penalty),
        max_completion_tokens=first(request.max_completion_tokens, request.max_tokens),
        min_tokens=request.min_tokens,
        seed=request.seed,
        n=request.n,
        stop=[request.stop] if isinstance(request.stop, str) else request.stop,
        stop_token_ids=request.stop_token_ids,
        logit_bias=request.logit_bias,
        ignore_eos=request.ignore_eos,
        include_stop_str_in_output=request.include_stop_str_in_output,
        skip_special_tokens=request.skip_special_tokens,
        bad_words=request.bad_words,
        allowed_token_ids=request.allowed_token_ids,
    )


def _prompt(request: openai.ChatCompletionRequest) -> chat_pb2.PromptOptions:
    kwargs = request.chat_template_kwargs
    return chat_pb2.PromptOptions(
        chat_template_kwargs_json=None if kwargs is None else json_text(kwargs),
        add_generation_prompt=request.add_generation_prompt,
        continue_final_message=request.continue_final_message,
        truncate_prompt_tokens=request.truncate_prompt_tokens,
    )


def _audio(wanted: openai.AudioOutput | None) -> chat_pb2.AudioOutput | None:
    if wanted is None:
        return None
    return chat_pb2.AudioOutput(voice=wanted.voice, format=wanted.format)


def _prediction(expected: openai.Prediction | None) -> chat_pb2.Prediction | None:
    if expected is None:
        return None
    return chat_pb2.Prediction(content=content_parts(expected.content, "prediction.content"))


def _tool(tool: openai.FunctionTool) -> chat_pb2.Tool:
    function = tool.function
    return chat_pb2.Tool(
        function=chat_pb2.FunctionDefinition(
            name=function.name,
            description=function.description or "",
            parameters_json_schema=json_text(function.parameters),
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
                    mode=_TOOL_MODES[allowed.mode],
                    function_names=[tool.function.name for tool in allowed.tools],
                )
            )
        case mode:
            return chat_pb2.ToolChoice(mode=_TOOL_MODES[mode])


def _response_format(request: openai.ChatCompletionRequest) -> chat_pb2.ResponseFormat | None:
    if request.structured_outputs is not None:
        if request.response_format is not None:
            raise InvalidRequest(
                "Send 'response_format' or 'structured_outputs', not both.",
                "structured_outputs",
                "invalid_value",
            )
        return _structured(request.structured_outputs)
    match request.response_format:
        case None:
            return None
        case openai.TextFormat():
            return chat_pb2.ResponseFormat(text=chat_pb2.TextFormat())
        case openai.JsonObjectFormat():
            return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
        case openai.JsonSchemaFormat(json_schema=wanted):
            return chat_pb2.ResponseFormat(
                json_schema=chat_pb2.JsonSchemaFormat(
                    name=wanted.name,
                    description=wanted.description or "",
                    schema_json=json_text(wanted.schema),
                    strict=wanted.strict,
                )
            )


def _structured(wanted: openai.StructuredOutputs) -> chat_pb2.ResponseFormat:
    given = [
        name for name in wanted.__struct_fields__ if getattr(wanted, name) not in (None, False)
    ]
    if len(given) != 1:
        raise InvalidRequest(
            "Exactly one field of 'structured_outputs' must be given.",
            "structured_outputs",
            "invalid_value",
        )
    if wanted.json is not None:
        schema = wanted.json if isinstance(wanted.json, str) else json_text(wanted.json)
        return chat_pb2.ResponseFormat(
            json_schema=chat_pb2.JsonSchemaFormat(schema_json=schema, strict=True)
        )
    if wanted.regex is not None:
        return chat_pb2.ResponseFormat(regex=wanted.regex)
    if wanted.grammar is not None:
        return chat_pb2.ResponseFormat(grammar=wanted.grammar)
    if wanted.choice is not None:
        return chat_pb2.ResponseFormat(choice=chat_pb2.ChoiceFormat(choices=wanted.choice))
    return chat_pb2.ResponseFormat(json_object=chat_pb2.JsonObjectFormat())
