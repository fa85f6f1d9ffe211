"""An answer's deltas as the wire's completion or chunks. Pure."""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2
from service.domain.engine import TokenLogprobs
from service.domain.model import ModelCard, Tokenizer
from service.rpc.decode.chat import finish_reason, matched_stop
from service.rpc.encode.logprobs import token_logprob
from service.text.output_text import TextDelta


@dataclass(frozen=True, slots=True)
class Heading:
    """What a completion says about itself before its first token.

    `prompt_token_ids` are told, and those of the answer, where `returns_token_ids`.
    """

    model: ModelCard
    tokenizer: Tokenizer
    prompt_token_ids: Sequence[int]
    n: int = 1
    returns_token_ids: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(
        self, num_completion_tokens: int, num_cached_tokens: int, num_reasoning_tokens: int
    ) -> chat_pb2.Usage:
        return chat_pb2.Usage(
            prompt_tokens=len(self.prompt_token_ids),
            completion_tokens=num_completion_tokens,
            cached_prompt_tokens=num_cached_tokens,
            reasoning_tokens=num_reasoning_tokens,
        )

    def logprobs(self, logprobs: Iterable[TokenLogprobs]) -> Iterator[chat_pb2.TokenLogprob]:
        return (token_logprob(token, self.tokenizer) for token in logprobs)


def completion(heading: Heading, deltas: list[TextDelta]) -> chat_pb2.ChatCompletion:
    """The whole answer; `deltas` are all of it, the last of each choice with its finish reason."""
    said: list[list[TextDelta]] = [[] for _ in range(heading.n)]
    for delta in deltas:
        said[delta.index].append(delta)
    return chat_pb2.ChatCompletion(
        id=heading.id,
        create_time=Timestamp(seconds=heading.created),
        model=heading.model.id,
        choices=[_choice(heading, index, deltas) for index, deltas in enumerate(said)],
        usage=heading.usage(
            sum(delta.num_tokens for delta in deltas),
            deltas[-1].num_cached_tokens,
            sum(choice[-1].num_reasoning_tokens for choice in said),
        ),
        system_fingerprint=heading.model.fingerprint,
        prompt_token_ids=heading.prompt_token_ids if heading.returns_token_ids else None,
        prompt_logprobs=heading.logprobs(
            chain.from_iterable(delta.prompt_logprobs for delta in deltas)
        ),
    )


def _choice(heading: Heading, index: int, deltas: list[TextDelta]) -> chat_pb2.Choice:
    text = "".join(delta.text for delta in deltas)
    calls = tool_calls(deltas)
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_ASSISTANT,
        content=[] if calls and not text else [chat_pb2.ContentPart(text=text)],
        reasoning_content="".join(delta.reasoning for delta in deltas),
        tool_calls=calls,
    )
    token_ids = chain.from_iterable(delta.token_ids for delta in deltas)
    return chat_pb2.Choice(
        index=index,
        message=message,
        finish_reason=finish_reason(deltas[-1].finish_reason),
        logprobs=heading.logprobs(chain.from_iterable(delta.logprobs for delta in deltas)),
        matched_stop=matched_stop(deltas[-1].matched_stop),
        token_ids=token_ids if heading.returns_token_ids else None,
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
    """The chunks of one streamed completion, in order."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._is_first = True
        self._num_tokens = 0
        self._choices = [_ChoiceProgress() for _ in range(heading.n)]

    def push(self, delta: TextDelta) -> chat_pb2.ChatCompletionChunk | None:
        """The chunk that `delta` makes; None while it says nothing and is not the end."""
        self._num_tokens += delta.num_tokens
        progress = self._choices[delta.index]
        progress.num_tokens += delta.num_tokens
        if self._heading.returns_token_ids:
            progress.token_ids += delta.token_ids
        progress.num_reasoning_tokens = delta.num_reasoning_tokens
        if not _says_something(delta) and delta.finish_reason is None:
            return None
        chunk = chat_pb2.ChatCompletionChunk(choices=[self._choice(delta, progress)])
        is_last = all(choice.is_finished for choice in self._choices)
        if self._is_first or is_last:
            chunk.usage.CopyFrom(
                self._heading.usage(
                    self._num_tokens,
                    delta.num_cached_tokens,
                    sum(choice.num_reasoning_tokens for choice in self._choices),
                )
            )
        if self._is_first:
            self._head(chunk)
        chunk.prompt_logprobs.extend(self._heading.logprobs(delta.prompt_logprobs))
        return chunk

    def _choice(self, delta: TextDelta, progress: "_ChoiceProgress") -> chat_pb2.ChoiceDelta:
        choice = chat_pb2.ChoiceDelta(
            index=delta.index,
            delta=chat_pb2.Delta(
                content=delta.text or None,
                reasoning_content=delta.reasoning or None,
                tool_calls=tool_calls([delta]),
            ),
            finish_reason=finish_reason(delta.finish_reason),
            num_tokens=progress.num_tokens,
            matched_stop=matched_stop(delta.matched_stop),
            token_ids=progress.token_ids,
        )
        if delta.logprobs:
            choice.logprobs.extend(self._heading.logprobs(delta.logprobs))
        if progress.is_new:
            choice.delta.role = chat_pb2.ROLE_ASSISTANT
        progress.is_new, progress.num_tokens, progress.token_ids = False, 0, ()
        progress.is_finished = delta.finish_reason is not None
        return choice

    def _head(self, chunk: chat_pb2.ChatCompletionChunk) -> None:
        heading = self._heading
        chunk.id = heading.id
        chunk.create_time.seconds = heading.created
        chunk.model = heading.model.id
        chunk.system_fingerprint = heading.model.fingerprint
        if heading.returns_token_ids:
            chunk.prompt_token_ids.extend(heading.prompt_token_ids)
        self._is_first = False


@dataclass(slots=True)
class _ChoiceProgress:
    """A choice in a stream: what was generated since its last chunk, its text held back."""

    num_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    num_reasoning_tokens: int = 0  # of all of it
    is_new: bool = True
    is_finished: bool = False


def _says_something(delta: TextDelta) -> bool:
    return bool(
        delta.text or delta.reasoning or delta.calls or delta.logprobs or delta.prompt_logprobs
    )
