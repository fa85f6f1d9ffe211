"""An answer's deltas as the wire's completion or chunks. Pure."""

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2
from service.rpc.convert import finish_reason, matched_stop
from service.text.answer import TextDelta
from service.types import ModelCard


@dataclass(frozen=True, slots=True)
class Heading:
    """What a completion says about itself before its first token."""

    model: ModelCard
    num_prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(
        self, num_completion_tokens: int, num_cached_tokens: int, num_reasoning_tokens: int
    ) -> chat_pb2.Usage:
        return chat_pb2.Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=num_completion_tokens,
            cached_prompt_tokens=num_cached_tokens,
            reasoning_tokens=num_reasoning_tokens,
        )


def completion(heading: Heading, deltas: list[TextDelta]) -> chat_pb2.ChatCompletion:
    """The whole answer; `deltas` are all of it, the last with its finish reason."""
    text = "".join(delta.text for delta in deltas)
    calls = tool_calls(deltas)
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_ASSISTANT,
        content=[] if calls and not text else [chat_pb2.ContentPart(text=text)],
        reasoning_content="".join(delta.reasoning for delta in deltas),
        tool_calls=calls,
    )
    choice = chat_pb2.Choice(
        message=message,
        finish_reason=finish_reason(deltas[-1].finish_reason),
        matched_stop=matched_stop(deltas[-1].matched_stop),
    )
    return chat_pb2.ChatCompletion(
        id=heading.id,
        create_time=Timestamp(seconds=heading.created),
        model=heading.model.id,
        choices=[choice],
        usage=heading.usage(
            sum(delta.num_tokens for delta in deltas),
            deltas[-1].num_cached_tokens,
            deltas[-1].num_reasoning_tokens,
        ),
        system_fingerprint=heading.model.fingerprint,
    )


def tool_calls(deltas: Iterable[TextDelta]) -> list[chat_pb2.ToolCall]:
    """The calls that the pieces in `deltas` add up to, in order."""
    calls: dict[int, chat_pb2.ToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.calls):
        call = calls.setdefault(piece.index, chat_pb2.ToolCall(index=piece.index))
        call.id += piece.id
        call.function.name += piece.name
        call.function.arguments_json += piece.arguments
    return list(calls.values())


class ChunkBuilder:
    """The chunks of one streamed answer, in order."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._is_first = True
        self._num_tokens = 0
        self._num_pending_tokens = 0  # generated, their text held back

    def push(self, delta: TextDelta) -> chat_pb2.ChatCompletionChunk | None:
        """The chunk that `delta` makes; None while it says nothing and is not the end."""
        self._num_tokens += delta.num_tokens
        self._num_pending_tokens += delta.num_tokens
        says = delta.text or delta.reasoning or delta.calls
        if not says and delta.finish_reason is None:
            return None
        choice = chat_pb2.ChoiceDelta(
            delta=chat_pb2.Delta(
                content=delta.text or None,
                reasoning_content=delta.reasoning or None,
                tool_calls=tool_calls([delta]),
            ),
            finish_reason=finish_reason(delta.finish_reason),
            num_tokens=self._num_pending_tokens,
            matched_stop=matched_stop(delta.matched_stop),
        )
        self._num_pending_tokens = 0
        chunk = chat_pb2.ChatCompletionChunk(choices=[choice])
        if self._is_first or delta.finish_reason is not None:
            chunk.usage.CopyFrom(
                self._heading.usage(
                    self._num_tokens, delta.num_cached_tokens, delta.num_reasoning_tokens
                )
            )
        if self._is_first:
            self._head(chunk)
        return chunk

    def _head(self, chunk: chat_pb2.ChatCompletionChunk) -> None:
        chunk.id = self._heading.id
        chunk.create_time.seconds = self._heading.created
        chunk.model = self._heading.model.id
        chunk.system_fingerprint = self._heading.model.fingerprint
        chunk.choices[0].delta.role = chat_pb2.ROLE_ASSISTANT
        self._is_first = False
