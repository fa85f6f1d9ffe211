"""Converts chat completions to the messages and the events of Anthropic's Messages API."""

import msgspec

from chatrpc.v1 import chat_pb2
from gateway_http.convert.thinking_signature import signature, signature_with_text
from gateway_http.protocol import anthropic

_STOP_REASONS: dict[int, anthropic.StopReason] = {
    chat_pb2.FINISH_REASON_STOP: "end_turn",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_use",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "refusal",
}
_NO_INPUT = msgspec.Raw(b"{}")


def message(
    whole: chat_pb2.ChatCompletion, model: str, request: anthropic.MessagesRequest
) -> anthropic.AssistantMessage:
    """Convert a completion; `model` is the name of its model for clients."""
    choice = whole.choices[0]
    end = _end(
        choice.finish_reason,
        choice.matched_stop,
        whole.usage,
        request,
        has_refused=bool(choice.message.refusal),
    )
    return anthropic.AssistantMessage(
        id=_message_id(whole.id),
        model=model,
        content=_content(choice.message, hides_thinking=_hides_thinking(request)),
        stop_reason=end.stop_reason,
        stop_sequence=end.stop_sequence,
        usage=_usage(whole.usage),
    )


class MessageEvents:
    """Converts the chunks of one streamed chat completion.

    The events are a `message_start`, the blocks one after another, a `message_delta` and a
    `message_stop`.

    Attributes:
        is_started: True once an event with a token has been returned.
    """

    def __init__(self, request: anthropic.MessagesRequest) -> None:
        self._request = request
        self._hides_thinking = _hides_thinking(request)
        self._id = self._model = ""
        self._usage = chat_pb2.Usage()
        self._finish_reason = chat_pb2.FINISH_REASON_STOP
        self._matched_stop = chat_pb2.MatchedStop()
        self._has_refused = False
        self._index = -1  # of the open block, or of the last one
        self._open: type[anthropic.ContentBlock] | None = None
        self._thinking: list[str] = []  # joined once: appending to a text would copy all of it
        self.is_started = False

    def push(self, chunk: chat_pb2.ChatCompletionChunk, model: str) -> list[anthropic.Event]:
        """Convert a chunk. There are no events before the first token.

        Args:
            chunk: The service's chunk.
            model: The name of its model for clients. Only that of the first chunk is used.
        """
        if chunk.id:
            self._id, self._model = chunk.id, model
        if chunk.HasField("usage"):
            self._usage = chunk.usage
        events: list[anthropic.Event] = []
        for choice in chunk.choices:
            if not self.is_started and (choice.num_tokens or choice.finish_reason):
                self.is_started = True
                events.append(self._start())
            events += self._delta(choice.delta)
            if choice.finish_reason:
                self._finish_reason = choice.finish_reason
                self._matched_stop = choice.matched_stop
        return events

    def finish(self) -> list[anthropic.Event]:
        """Return the events that follow the service's last chunk."""
        end = _end(
            self._finish_reason,
            self._matched_stop,
            self._usage,
            self._request,
            has_refused=self._has_refused,
        )
        return [
            *self._close(),
            anthropic.MessageDelta(end, _usage(self._usage)),
            anthropic.MessageStop(),
        ]

    def _start(self) -> anthropic.MessageStart:
        return anthropic.MessageStart(
            anthropic.AssistantMessage(
                id=_message_id(self._id),
                model=self._model,
                content=[],
                stop_reason=None,
                usage=_usage(self._usage),
            )
        )

    def _delta(self, delta: chat_pb2.Delta) -> list[anthropic.Event]:
        events: list[anthropic.Event] = []
        if delta.reasoning_content:
            events += self._begin(anthropic.ThinkingBlock("", ""))
            self._thinking.append(delta.reasoning_content)
            if not self._hides_thinking:
                events.append(self._more(anthropic.ThinkingDelta(delta.reasoning_content)))
        self._has_refused |= bool(delta.refusal)
        if text := delta.content or delta.refusal:
            events += self._begin(anthropic.TextBlock(""))
            events.append(self._more(anthropic.TextDelta(text)))
        for call in delta.tool_calls:
            if call.id:
                events += self._close()
                block = anthropic.ToolUseBlock(call.id, call.function.name, _NO_INPUT)
                events += self._begin(block)
            if call.function.arguments_json:
                events.append(self._more(anthropic.InputJsonDelta(call.function.arguments_json)))
        return events

    def _begin(self, block: anthropic.ContentBlock) -> list[anthropic.Event]:
        """Start a block, unless one of this kind is open."""
        if self._open is type(block):
            return []
        events = self._close()
        self._index += 1
        self._open = type(block)
        events.append(anthropic.ContentBlockStart(self._index, block))
        return events

    def _more(
        self,
        delta: anthropic.TextDelta | anthropic.ThinkingDelta | anthropic.InputJsonDelta,
    ) -> anthropic.ContentBlockDelta:
        return anthropic.ContentBlockDelta(self._index, delta)

    def _close(self) -> list[anthropic.Event]:
        """End the open block, if there is one."""
        if self._open is None:
            return []
        events: list[anthropic.Event] = []
        if self._open is anthropic.ThinkingBlock:
            signed = _signature("".join(self._thinking), is_hidden=self._hides_thinking)
            delta = anthropic.SignatureDelta(signed)
            events.append(anthropic.ContentBlockDelta(self._index, delta))
            self._thinking = []
        self._open = None
        return [*events, anthropic.ContentBlockStop(self._index)]


def _hides_thinking(request: anthropic.MessagesRequest) -> bool:
    thinking = request.thinking
    return (
        isinstance(thinking, anthropic.ThinkingEnabled | anthropic.ThinkingAdaptive)
        and thinking.display == "omitted"
    )


def _signature(text: str, *, is_hidden: bool) -> str:
    return signature_with_text(text) if is_hidden else signature(text)


def _message_id(completion_id: str) -> str:
    return "msg_" + completion_id.removeprefix("chatcmpl-")


def _content(whole: chat_pb2.ChatMessage, *, hides_thinking: bool) -> list[anthropic.ContentBlock]:
    blocks: list[anthropic.ContentBlock] = []
    if reasoning := whole.reasoning_content:
        signed = _signature(reasoning, is_hidden=hides_thinking)
        blocks.append(anthropic.ThinkingBlock("" if hides_thinking else reasoning, signed))
    if text := "".join(part.text for part in whole.content) + whole.refusal:
        blocks.append(anthropic.TextBlock(text))
    for call in whole.tool_calls:
        arguments = _object(call.function.arguments_json)
        blocks.append(anthropic.ToolUseBlock(call.id, call.function.name, arguments))
    return blocks


def _object(text: str) -> msgspec.Raw:
    """Return the arguments of a tool call as JSON. An incomplete text becomes a value in it."""
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return msgspec.Raw(msgspec.json.encode({"INVALID_JSON": text}))
    return msgspec.Raw(text.encode())


def _end(
    finish_reason: int,
    matched_stop: chat_pb2.MatchedStop,
    usage: chat_pb2.Usage,
    request: anthropic.MessagesRequest,
    *,
    has_refused: bool,
) -> anthropic.MessageEnd:
    reason: anthropic.StopReason
    sequence: str | None = None
    if finish_reason == chat_pb2.FINISH_REASON_LENGTH:
        is_limit = usage.completion_tokens >= request.max_tokens
        reason = "max_tokens" if is_limit else "model_context_window_exceeded"
    elif matched_stop.text:
        reason, sequence = "stop_sequence", matched_stop.text
    else:
        reason = _STOP_REASONS[finish_reason]
    return anthropic.MessageEnd(
        stop_reason="refusal" if has_refused else reason, stop_sequence=sequence
    )


def _usage(counted: chat_pb2.Usage) -> anthropic.MessageUsage:
    return anthropic.MessageUsage(
        input_tokens=counted.prompt_tokens - counted.cached_prompt_tokens,
        cache_read_input_tokens=counted.cached_prompt_tokens,
        output_tokens=counted.completion_tokens,
        output_tokens_details=anthropic.OutputTokensDetails(counted.reasoning_tokens),
    )
