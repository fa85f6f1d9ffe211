"""Converts chat completions to the responses and the events of OpenAI's Responses API."""

import secrets
import time

import msgspec
from msgspec import UNSET

from chatrpc.v1 import chat_pb2
from gateway_http.convert import chat_completions
from gateway_http.convert.response_tools import placed_tools
from gateway_http.convert.responses_items import (
    Events,
    OpenCustomCall,
    OpenFunctionCall,
    OpenItem,
    OpenReasoning,
    OpenRefusal,
    OpenSummary,
    OpenText,
)
from gateway_http.protocol import responses as openai
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.response import TokenLogprob
from gateway_http.protocol.responses_request import (
    ReasoningOptions,
    ResponseFunctionTool,
    ResponseNamespaceTool,
    ResponsesRequest,
    ResponseTool,
    TextOptions,
)
from gateway_http.protocol.sampling import TextFormat

_NULL = msgspec.Raw(b"null")


def response(
    whole: chat_pb2.ChatCompletion, model: str, request: ResponsesRequest
) -> openai.ResponseObject:
    """Convert a completion; `model` is the name of its model for clients."""
    choice = whole.choices[0]
    events = ResponseEvents(request)
    events.push(
        chat_pb2.ChatCompletionChunk(
            id=whole.id,
            create_time=whole.create_time,
            usage=whole.usage,
            choices=[
                chat_pb2.ChoiceDelta(
                    delta=chat_pb2.Delta(
                        reasoning_content=choice.message.reasoning_content,
                        content="".join(part.text for part in choice.message.content),
                        refusal=choice.message.refusal,
                        tool_calls=choice.message.tool_calls,
                    ),
                    finish_reason=choice.finish_reason,
                    logprobs=choice.logprobs,
                )
            ],
        ),
        model,
    )
    events.finish()
    return events.response


class ResponseEvents:
    """Converts the chunks of one streamed chat completion.

    The events are `response.created` and `response.in_progress`, those of the items one after
    another, and one that has the whole response.

    Attributes:
        is_started: True once an event has been returned.
        response: The response so far. It is complete after `finish`.
    """

    response: openai.ResponseObject

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._tools = {placed.function_name: placed for placed in placed_tools(request)}
        self._suffix = secrets.token_hex(12)
        self._num_events = 0
        self._finish_reason = chat_pb2.FINISH_REASON_STOP
        self._usage = chat_pb2.Usage()
        self._open: OpenItem | None = None
        self._logprobs: list[TokenLogprob] = []  # of tokens whose text has not arrived yet
        self.is_started = False

    def push(self, chunk: chat_pb2.ChatCompletionChunk, model: str) -> Events:
        """Convert a chunk. There are no events before the first token.

        Args:
            chunk: The service's chunk.
            model: The name of its model for clients. Only that of the first chunk is used.
        """
        if chunk.id:
            created_s = chunk.create_time.seconds
            self.response = _new_response(self._request, self._suffix, created_s, model)
        if chunk.HasField("usage"):
            self._usage = chunk.usage
        events: Events = []
        for choice in chunk.choices:
            if not self.is_started and (choice.num_tokens or choice.finish_reason):
                self.is_started = True
                # A copy, since the items of this chunk are added before the events are encoded.
                begun = msgspec.structs.replace(self.response, output=[])
                events.append(openai.ResponseCreated(response=begun))
                events.append(openai.ResponseInProgress(response=begun))
            events += self._delta(choice)
            if choice.finish_reason:
                self._finish_reason = choice.finish_reason
        return self._numbered(events)

    def finish(self) -> Events:
        """Return the events that follow the service's last chunk."""
        response, reason = self.response, self._finish_reason
        is_complete = reason in (chat_pb2.FINISH_REASON_STOP, chat_pb2.FINISH_REASON_TOOL_CALLS)
        events: Events = []
        if is_complete and not response.output and self._open is None:
            events += self._begin(OpenText)  # an empty output is an empty message
        events += self._close("completed" if is_complete else "incomplete")
        response.usage = _usage(self._usage)
        if is_complete:
            response.status, response.completed_at = "completed", int(time.time())
            events.append(openai.ResponseCompleted(response=response))
        else:
            is_limit = reason == chat_pb2.FINISH_REASON_LENGTH
            response.status = "incomplete"
            response.incomplete_details = openai.IncompleteDetails(
                "max_output_tokens" if is_limit else "content_filter"
            )
            events.append(openai.ResponseIncomplete(response=response))
        return self._numbered(events)

    def fail(self, error: ApiError) -> Events:
        """Return the events that end a stream that failed."""
        cause = error.body.error
        if not self.is_started:
            event = openai.StreamError(code=cause.code, message=cause.message, param=cause.param)
            return self._numbered([event])
        self._close("incomplete")
        self.response.status = "failed"
        self.response.error = openai.ResponseError(_error_code(error.status), cause.message)
        return self._numbered([openai.ResponseFailed(response=self.response)])

    def _numbered(self, events: Events) -> Events:
        for event in events:
            event.sequence_number = self._num_events
            self._num_events += 1
        return events

    def _delta(self, choice: chat_pb2.ChoiceDelta) -> Events:
        events: Events = []
        delta = choice.delta
        if delta.reasoning_content:
            events += self._begin(OpenSummary if _has_summary(self._request) else OpenReasoning)
            events += self._add(delta.reasoning_content)
        elif logprobs := chat_completions.logprobs(choice.logprobs):
            self._logprobs += logprobs.content
        if delta.content:
            events += self._begin(OpenText)
            events += self._add(delta.content)
        if delta.refusal:
            events += self._begin(OpenRefusal)
            events += self._add(delta.refusal)
        for call in delta.tool_calls:
            if call.id:
                events += self._begin_call(call)
            events += self._add(call.function.arguments_json)
        return events

    def _begin(self, kind: type[OpenItem]) -> Events:
        """Start an item, unless one of this kind is open."""
        if type(self._open) is kind:
            return []
        events = self._close()
        index = len(self.response.output)
        if issubclass(kind, OpenReasoning):
            is_encrypted = "reasoning.encrypted_content" in (self._request.include or ())
            self._open = kind(self._item_id("rs", index), index, is_encrypted=is_encrypted)
        else:
            self._open = kind(self._item_id("msg", index), index)
        return events + self._open.begin()

    def _begin_call(self, call: chat_pb2.ToolCall) -> Events:
        events = self._close()
        index, name = len(self.response.output), call.function.name
        placed, namespace = self._tools.get(name), None
        if placed is not None:
            name, namespace = placed.tool.name, placed.namespace
        is_custom = placed is not None and placed.is_custom
        kind, prefix = (OpenCustomCall, "ctc") if is_custom else (OpenFunctionCall, "fc")
        self._open = kind(
            self._item_id(prefix, index),
            index,
            call.id,
            name,
            namespace or UNSET,
        )
        return events + self._open.begin()

    def _item_id(self, prefix: str, index: int) -> str:
        return f"{prefix}_{self._suffix}_{index}"

    def _add(self, text: str) -> Events:
        if self._open is None:
            return []
        self._place_logprobs()
        return self._open.add(text)

    def _place_logprobs(self) -> None:
        """Give the log probabilities to the open item, if it is a text."""
        if isinstance(self._open, OpenText):
            self._open.new_logprobs += self._logprobs
            self._logprobs = []

    def _close(self, status: openai.ItemStatus = "completed") -> Events:
        """End the open item, if there is one."""
        if self._open is None:
            return []
        self._place_logprobs()
        events, item = self._open.finish(status)
        self.response.output.append(item)
        self._open = None
        return events


def _new_response(
    request: ResponsesRequest, suffix: str, created_s: int, model: str
) -> openai.ResponseObject:
    """Return a response without output."""
    return openai.ResponseObject(
        id=f"resp_{suffix}",
        created_at=created_s,
        status="in_progress",
        model=model,
        output=[],
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        frequency_penalty=request.frequency_penalty or 0,
        metadata=request.metadata or {},
        parallel_tool_calls=request.parallel_tool_calls is not False,
        presence_penalty=request.presence_penalty or 0,
        previous_response_id=request.previous_response_id,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning or ReasoningOptions(),
        safety_identifier=request.safety_identifier,
        store=bool(request.store),
        temperature=1 if request.temperature is None else request.temperature,
        text=_text_options(request.text),
        tool_choice=request.tool_choice or "auto",
        tools=[_tool(tool) for tool in request.tools or ()],
        top_logprobs=request.top_logprobs or 0,
        top_p=1 if request.top_p is None else request.top_p,
        user=request.user,
    )


def _text_options(text: TextOptions | None) -> TextOptions:
    given = text or TextOptions()
    return TextOptions(given.format or TextFormat(), given.verbosity or "medium")


def _tool(tool: ResponseTool) -> ResponseTool:
    """Return a tool as responses have it: `parameters` and `strict` of functions are present."""
    if isinstance(tool, ResponseNamespaceTool):
        return msgspec.structs.replace(tool, tools=[_tool(each) for each in tool.tools])
    if isinstance(tool, ResponseFunctionTool):
        return msgspec.structs.replace(
            tool, parameters=tool.parameters or _NULL, strict=bool(tool.strict)
        )
    return tool


def _has_summary(request: ResponsesRequest) -> bool:
    options = request.reasoning
    return options is not None and bool(options.summary or options.generate_summary)


def _usage(counted: chat_pb2.Usage) -> openai.ResponseUsage:
    return openai.ResponseUsage(
        input_tokens=counted.prompt_tokens,
        input_tokens_details=openai.InputTokensDetails(counted.cached_prompt_tokens),
        output_tokens=counted.completion_tokens,
        output_tokens_details=openai.ResponseOutputTokensDetails(counted.reasoning_tokens),
        total_tokens=counted.prompt_tokens + counted.completion_tokens,
    )


def _error_code(status: int) -> openai.ErrorCode:
    if status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if status < 500 else "server_error"
