"""Encodes chat completion deltas as protobuf messages."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2
from service.domain.backend import Prompt, TextDelta, TokenUsage
from service.domain.chat import ChatRequest
from service.domain.model import ModelCard
from service.rpc.encode.finish import finish_reason, matched_stop
from service.rpc.encode.logprobs import token_logprobs
from service.rpc.encode.usage import usage


class ChatEncoder:
    """The messages of one chat completion: either the completion or its chunks, in order."""

    def __init__(
        self,
        card: ModelCard,
        request: ChatRequest,
        prompt: Prompt,
        completion_id: str | None = None,
        created: int | None = None,
    ) -> None:
        self._card = card
        self._prompt = prompt
        self._returns_token_ids = request.returns_token_ids
        self._id = f"chatcmpl-{uuid.uuid4().hex}" if completion_id is None else completion_id
        self._created = int(time.time()) if created is None else created
        self._is_first = True
        self._num_tokens = 0
        self._choices = [_ChoiceProgress() for _ in range(request.n)]

    def completion(self, deltas: Sequence[TextDelta]) -> chat_pb2.ChatCompletion:
        """Return the completion. `deltas` are all deltas of all choices."""
        of_choices: list[list[TextDelta]] = [[] for _ in self._choices]
        for delta in deltas:
            of_choices[delta.index].append(delta)
        return chat_pb2.ChatCompletion(
            id=self._id,
            create_time=Timestamp(seconds=self._created),
            model=self._card.id,
            choices=[self._choice(index, deltas) for index, deltas in enumerate(of_choices)],
            usage=self._usage(
                sum(delta.num_tokens for delta in deltas),
                deltas[-1].num_cached_tokens,
                sum(choice[-1].num_reasoning_tokens for choice in of_choices),
                deltas[-1].usage,
            ),
            system_fingerprint=self._card.fingerprint,
            prompt_token_ids=self._prompt_token_ids(of_choices[0][0]),
            prompt_logprobs=token_logprobs(
                chain.from_iterable(delta.prompt_logprobs for delta in deltas)
            ),
        )

    def chunk(self, delta: TextDelta) -> chat_pb2.ChatCompletionChunk | None:
        """Return the chunk of the next delta; None if the delta is empty and not the last."""
        self._num_tokens += delta.num_tokens
        progress = self._choices[delta.index]
        progress.num_tokens += delta.num_tokens
        if self._returns_token_ids:
            progress.token_ids += delta.token_ids
        progress.num_reasoning_tokens = delta.num_reasoning_tokens
        if _is_empty(delta) and delta.finish_reason is None:
            return None
        chunk = chat_pb2.ChatCompletionChunk()
        _set_choice(chunk.choices.add(), delta, progress)
        is_end = delta.finish_reason is not None
        if self._is_first or (is_end and all(choice.is_finished for choice in self._choices)):
            chunk.usage.CopyFrom(
                self._usage(
                    self._num_tokens,
                    delta.num_cached_tokens,
                    sum(choice.num_reasoning_tokens for choice in self._choices),
                    delta.usage,
                )
            )
        if self._is_first:
            self._add_head(chunk, delta)
        if delta.prompt_logprobs:
            chunk.prompt_logprobs.extend(token_logprobs(delta.prompt_logprobs))
        return chunk

    def _usage(
        self,
        num_completion_tokens: int,
        num_cached_tokens: int,
        num_reasoning_tokens: int,
        reported: TokenUsage | None,
    ) -> chat_pb2.Usage:
        if reported is not None:
            return usage(reported)
        return chat_pb2.Usage(
            prompt_tokens=self._prompt.num_tokens or 0,
            completion_tokens=num_completion_tokens,
            cached_prompt_tokens=num_cached_tokens,
            reasoning_tokens=num_reasoning_tokens,
        )

    def _choice(self, index: int, deltas: list[TextDelta]) -> chat_pb2.Choice:
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
            logprobs=token_logprobs(chain.from_iterable(delta.logprobs for delta in deltas)),
            matched_stop=matched_stop(deltas[-1].matched_stop),
            token_ids=token_ids if self._returns_token_ids else None,
        )

    def _prompt_token_ids(self, first: TextDelta) -> Sequence[int]:
        """Return the ids of the prompt's tokens, if requested. `first` is the first delta."""
        return (self._prompt.token_ids or first.prompt_token_ids) if self._returns_token_ids else ()

    def _add_head(self, chunk: chat_pb2.ChatCompletionChunk, first: TextDelta) -> None:
        chunk.id = self._id
        chunk.create_time.seconds = self._created
        chunk.model = self._card.id
        chunk.system_fingerprint = self._card.fingerprint
        chunk.prompt_token_ids.extend(self._prompt_token_ids(first))
        self._is_first = False


def tool_calls(deltas: Iterable[TextDelta]) -> list[chat_pb2.ToolCall]:
    """Return the tool calls in order, each joined from its pieces in `deltas`."""
    calls: dict[int, chat_pb2.ToolCall] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        call = calls.setdefault(piece.index, chat_pb2.ToolCall(index=piece.index))
        call.id += piece.id
        call.function.name += piece.name
        call.function.arguments_json += piece.arguments
    return list(calls.values())


@dataclass(slots=True)
class _ChoiceProgress:
    """The state of a choice in a stream: token counts and what its last chunk left unsent."""

    num_tokens: int = 0
    token_ids: tuple[int, ...] = ()
    num_reasoning_tokens: int = 0  # since the start of the choice
    is_new: bool = True
    is_finished: bool = False


# Most chunks have one token and no more. So only the fields with a value are set.
def _set_choice(
    choice: chat_pb2.ChoiceDelta, delta: TextDelta, progress: "_ChoiceProgress"
) -> None:
    """Set an empty message to a delta and to what the last chunk of the choice left unsent."""
    _set_message(choice.delta, delta)
    if progress.is_new:
        choice.delta.role = chat_pb2.ROLE_ASSISTANT
    if delta.index:
        choice.index = delta.index
    if delta.logprobs:
        choice.logprobs.extend(token_logprobs(delta.logprobs))
    if progress.num_tokens:
        choice.num_tokens = progress.num_tokens
    if progress.token_ids:
        choice.token_ids.extend(progress.token_ids)
    if delta.finish_reason is not None:
        choice.finish_reason = finish_reason(delta.finish_reason)
        if (matched := matched_stop(delta.matched_stop)) is not None:
            choice.matched_stop.CopyFrom(matched)
    progress.is_new, progress.num_tokens, progress.token_ids = False, 0, ()
    progress.is_finished = delta.finish_reason is not None


def _set_message(message: chat_pb2.Delta, delta: TextDelta) -> None:
    message.SetInParent()  # a chunk has it even if it is empty
    if delta.text:
        message.content = delta.text
    if delta.reasoning:
        message.reasoning_content = delta.reasoning
    if delta.tool_calls:
        message.tool_calls.extend(tool_calls([delta]))


def _is_empty(delta: TextDelta) -> bool:
    has_prompt_logprobs = len(delta.prompt_logprobs) > 1  # the first entry has no value
    return not (
        delta.text or delta.reasoning or delta.tool_calls or delta.logprobs or has_prompt_logprobs
    )
