"""Builds the bodies of requests to upstreams.

Only what the request sets is sent, so that the upstream's own defaults hold.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from service.domain.backend import CallContext, GenerationRequest
from service.domain.chat import (
    ChatRequest,
    Image,
    Message,
    PromptOptions,
    ResponseFormat,
    ResponseFormatKind,
    Tool,
    ToolMode,
)
from service.domain.completion import CompletionRequest
from service.domain.engine import Caller
from service.domain.sampling import SamplingParams
from service.errors import InvalidField
from service.upstream.dialects import Dialect, Names

# Fields of `SamplingParams` whose value needs no conversion.
_PLAIN = (
    *("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "min_tokens", "stop", "bad_words", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens"),
)
_NEUTRAL = SamplingParams()
# Dialects that report the numbers of tokens in every chunk if asked to.
_WITH_RUNNING_USAGE = (Dialect.VLLM, Dialect.SGLANG)


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request that is ready to be sent.

    Attributes:
        path: The path of the endpoint, after the upstream's URL.
        body: The JSON of the request.
        is_streamed: True if the response is to come as server-sent events.
        has_upstream_echo: True if the texts of the response begin with the prompts.
    """

    path: str
    body: bytes
    is_streamed: bool = True
    has_upstream_echo: bool = False


def upstream_request(
    request: GenerationRequest, call: CallContext, model: str, names: Names
) -> UpstreamRequest:
    """Return the request to an upstream.

    Args:
        model: The upstream's name of the model.
        names: The names of its dialect.

    Raises:
        UnsupportedField: The dialect has no such option.
        InvalidField: A JSON schema is not JSON.
    """
    body: dict[str, Any] = {"model": model}
    has_echo = False
    if isinstance(request, ChatRequest):
        path = "/chat/completions"
        body["messages"] = [
            message_body(message, f"{request.messages_field}[{i}]", names)
            for i, message in enumerate(request.messages)
        ]
        _put_chat_options(body, request, names)
    else:
        path = "/completions"
        has_echo = _has_upstream_echo(request)
        _put_completion_options(body, request, names, has_echo=has_echo)
    _put_sampling(body, request.sampling, names, is_chat=isinstance(request, ChatRequest))
    if request.n > 1:
        names.put(body, "sampling.n", request.n)
    if request.returns_token_ids:
        names.put(body, "return_token_ids", True)
    if request.num_prompt_logprobs is not None and not has_echo:
        names.put(body, "prompt_logprobs", request.num_prompt_logprobs)
        body["return_token_ids"] = True  # the first token has no log probability, but an id
    if request.response_format is not None:
        is_chat = isinstance(request, ChatRequest)
        _put_format(body, request.response_format, names, is_chat=is_chat)
    _put_priority(body, call, names)
    _put_cache_salt(body, request.cache_salt, call.caller, names)
    # vLLM streams no log probabilities of prompts.
    is_streamed = request.num_prompt_logprobs is None and not has_echo
    if is_streamed:
        body["stream"] = True
        body["stream_options"] = _stream_options(request, names.dialect)
    return UpstreamRequest(path, msgspec.json.encode(body), is_streamed, has_echo)


def _stream_options(request: GenerationRequest, dialect: Dialect) -> dict[str, bool]:
    options = {"include_usage": True}
    num_prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
    # With several choices the numbers in a chunk are those of its choice.
    if dialect in _WITH_RUNNING_USAGE and request.n * num_prompts == 1:
        options["continuous_usage_stats"] = True
    return options


def _put_chat_options(body: dict[str, Any], request: ChatRequest, names: Names) -> None:
    if request.tools:
        names.put(body, "tools", [tool_body(tool) for tool in request.tools])
        _put_tool_choice(body, request, names)
        if not request.has_parallel_calls:
            names.put(body, "parallel_tool_calls", False)
    if request.num_logprobs is not None:
        names.put(body, "logprobs", True)
        names.put(body, "top_logprobs", _num_alternatives(request.num_logprobs, names))
    _put_reasoning(body, request.prompt, names)
    _put_prompt_options(body, request.prompt, names)


def _put_reasoning(body: dict[str, Any], options: PromptOptions, names: Names) -> None:
    """Set the reasoning effort, and the template's variables without those that stand for it."""
    kwargs = dict(options.template_kwargs)
    if options.reasoning_effort:
        names.put(body, "reasoning_effort", options.reasoning_effort)
        if options.reasoning_effort == "none" and kwargs.get("enable_thinking") is False:
            del kwargs["enable_thinking"]
        elif kwargs.get("reasoning_effort") == options.reasoning_effort:
            del kwargs["reasoning_effort"]
    if kwargs:
        names.put(body, "prompt.chat_template_kwargs_json", kwargs)


def _put_prompt_options(body: dict[str, Any], options: PromptOptions, names: Names) -> None:
    if options.continue_final_message:
        names.put(body, "prompt.continue_final_message", True)
        if names.dialect is not Dialect.SGLANG:  # it has no such field, and needs none
            names.put(body, "prompt.add_generation_prompt", False)
    elif not options.add_generation_prompt:
        names.put(body, "prompt.add_generation_prompt", False)
    if options.truncate_prompt_tokens is not None:
        field = "prompt.truncate_prompt_tokens"
        names.put(body, field, options.truncate_prompt_tokens)
        body["truncation_side"] = "left"


def _put_completion_options(
    body: dict[str, Any], request: CompletionRequest, names: Names, *, has_echo: bool
) -> None:
    prompts: list[Any] = []
    for i, prompt in enumerate(request.prompts):
        field = "prompts.text" if isinstance(prompt, str) else "prompts.token_ids"
        names.of(field, f"{request.prompts_field}[{i}]")
        prompts.append(prompt)
    # A single prompt is not sent as a list, since some services take only one.
    names.put(body, "prompts.text", prompts[0] if len(prompts) == 1 else prompts)
    if has_echo:
        names.put(body, "echo", True)
    if request.num_logprobs is not None:
        names.put(body, "logprobs", _num_alternatives(request.num_logprobs, names))
    if not request.adds_special_tokens:
        names.put(body, "add_special_tokens", False)
    if request.truncate_prompt_tokens is not None:
        if request.is_echoed and not has_echo:
            raise InvalidField("truncate_prompt_tokens", "cannot be used with echo.")
        field = "prompt.truncate_prompt_tokens"
        names.put(body, field, request.truncate_prompt_tokens, "truncate_prompt_tokens")
        body["truncation_side"] = "left"


def _num_alternatives(number: int, names: Names) -> int:
    """Return the number of alternatives to request. With 0, some return no log probabilities."""
    return max(1, number) if names.dialect in (Dialect.SGLANG, Dialect.LLAMACPP) else number


def _has_upstream_echo(request: CompletionRequest) -> bool:
    """Return True if the upstream has to return the prompts.

    Otherwise the texts of the request suffice.
    """
    has_ids = any(not isinstance(prompt, str) for prompt in request.prompts)
    return request.is_echoed and (request.num_logprobs is not None or has_ids)


def _put_sampling(
    body: dict[str, Any], sampling: SamplingParams, names: Names, *, is_chat: bool
) -> None:
    for name in _PLAIN:
        field, value = f"sampling.{name}", getattr(sampling, name)
        # A value without effect may be set for a field that the dialect does not have.
        if name in sampling.given and (names.has(field) or value != getattr(_NEUTRAL, name)):
            names.put(body, field, value)
    if body.get("top_k") == 0 and names.dialect is Dialect.SGLANG:
        body["top_k"] = -1  # no limit
    if "repetition_penalty" in sampling.given and names.dialect is Dialect.LLAMACPP:
        body["repeat_last_n"] = -1  # the whole context
    if sampling.max_tokens is not None and "max_tokens" in sampling.given:
        if is_chat:
            names.put(body, "sampling.max_completion_tokens", sampling.max_tokens)
        else:
            body["max_tokens"] = sampling.max_tokens
    if sampling.logit_bias:
        bias = {str(token_id): value for token_id, value in sampling.logit_bias.items()}
        names.put(body, "sampling.logit_bias", bias)
    if sampling.stop_token_ids:
        names.put(body, "sampling.stop_token_ids", sorted(sampling.stop_token_ids))
    if sampling.allowed_token_ids is not None:
        names.put(body, "sampling.allowed_token_ids", sorted(sampling.allowed_token_ids))


def _put_tool_choice(body: dict[str, Any], request: ChatRequest, names: Names) -> None:
    if request.tool_mode is ToolMode.AUTO:
        return
    if request.tool_mode is ToolMode.NAMED and names.dialect is not Dialect.LLAMACPP:
        choice: Any = {"type": "function", "function": {"name": request.tools[0].name}}
    else:  # llama.cpp reads only a string, and the named tool is the only one that is sent
        choice = "required"
    names.put(body, "tool_choice", choice)


def _put_format(
    body: dict[str, Any], response_format: ResponseFormat, names: Names, *, is_chat: bool
) -> None:
    kind = response_format.kind
    field, path = f"response_format.{kind.value}", response_format.field
    match kind:
        case ResponseFormatKind.JSON_OBJECT | ResponseFormatKind.JSON_SCHEMA:
            is_any = kind is ResponseFormatKind.JSON_OBJECT
            schema = _schema('{"type": "object"}' if is_any else response_format.text, path)
            if names.dialect is Dialect.LLAMACPP and not is_chat:
                body["json_schema"] = schema  # it has no `response_format` in text completions
            elif is_any:
                names.put(body, field, {"type": "json_object"}, path)
            else:
                names.put(body, field, _json_schema(response_format, schema), path)
        case ResponseFormatKind.CHOICE:
            names.put(body, field, response_format.choices, path)
        case _:
            names.put(body, field, response_format.text, path)


def _json_schema(response_format: ResponseFormat, schema: msgspec.Raw) -> dict[str, Any]:
    described: dict[str, Any] = {"name": response_format.name or "response", "schema": schema}
    if response_format.description:
        described["description"] = response_format.description
    if response_format.is_strict:
        described["strict"] = True
    return {"type": "json_schema", "json_schema": described}


def _put_priority(body: dict[str, Any], call: CallContext, names: Names) -> None:
    if call.priority != call.caller.default_priority:
        names.put(body, "priority", call.priority)


def _put_cache_salt(body: dict[str, Any], salt: str, caller: Caller, names: Names) -> None:
    """Set a salt that callers with another namespace do not share."""
    if salt:
        names.of("cache_salt")
    namespace = caller.cache_namespace
    if salt or (namespace and names.has("cache_salt")):
        # vLLM takes at most 128 characters, and not all of them.
        digest = hashlib.sha256(repr((namespace, salt)).encode()).hexdigest()
        names.put(body, "cache_salt", digest)


def tool_body(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.schema:
        function["parameters"] = _schema(tool.schema, tool.schema_field)
    if tool.is_strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _schema(text: str, field: str) -> msgspec.Raw:
    """Return a JSON schema, which is sent as it is written: with the digits of its numbers.

    Raises:
        InvalidField: It is not JSON.
    """
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidField(field, "The JSON schema is not valid JSON.") from None
    return msgspec.Raw(text.encode())


def message_body(message: Message, path: str, names: Names) -> dict[str, Any]:
    """Return a message in OpenAI's form. OpenAI's own API has no reasoning in messages.

    Args:
        path: The message's path in the request, for errors.
    """
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.parts:
        fields["content"] = list(_parts(message, f"{path}.content", names))
    optional = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json},
            }
            for call in message.tool_calls
        ]
        or None,
    }
    if names.dialect is not Dialect.OPENAI:
        optional["reasoning_content"] = message.reasoning_content
    return fields | {name: value for name, value in optional.items() if value is not None}


def _parts(message: Message, path: str, names: Names) -> Iterator[dict[str, Any]]:
    for i, part in enumerate(message.parts):
        if isinstance(part, Image):
            image = {"url": part.url} | ({"detail": part.detail} if part.detail else {})
            name = names.of("messages.content.image", f"{path}[{i}]")
            yield {"type": name, name: image}
        else:
            yield {"type": "text", "text": part}
