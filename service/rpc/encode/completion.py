"""A text completion's pieces as the wire's chunks, or as its whole answer."""

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.engine import TokenLogprobs
from service.domain.model import ModelCard, Tokenizer
from service.rpc.calls.work_pools import WorkPools
from service.rpc.completion_generation import ChoiceDelta, Prompt
from service.rpc.decode.chat import finish_reason, matched_stop
from service.rpc.decode.completion import CompletionRequest
from service.rpc.encode.logprobs import prompt_tokens, token_logprob
from service.rpc.encode.text_offsets import TextOffsets, prompt_offsets


class CompletionBuilder:
    """The chunks of one completion, in order."""

    def __init__(
        self,
        request: CompletionRequest,
        prompts: Sequence[Prompt],
        card: ModelCard,
        tokenizer: Tokenizer,
        pools: WorkPools,
    ) -> None:
        self._card = card
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self._prompts = [
            _PromptChoices(request, i, p, tokenizer, pools) for i, p in enumerate(prompts)
        ]
        self._num_open = len(prompts) * request.n
        self._num_tokens = 0
        self._num_cached_tokens = [0] * len(prompts)
        self._is_first = True

    async def push(self, delta: ChoiceDelta) -> completion_pb2.CompletionChunk | None:
        """The chunk that `delta` makes; None while there is neither text nor an end."""
        self._num_tokens += delta.text.num_tokens
        self._num_cached_tokens[delta.prompt_index] = delta.text.num_cached_tokens
        choices = await self._prompts[delta.prompt_index].push(delta)
        if not choices:
            return None
        self._num_open -= sum(bool(choice.finish_reason) for choice in choices)
        chunk = completion_pb2.CompletionChunk(choices=choices)
        if self._is_first or not self._num_open:
            chunk.usage.CopyFrom(self._usage())
        if self._is_first:
            self._is_first = False
            chunk.id = self._id
            chunk.create_time.seconds = self._created
            chunk.model = self._card.id
            chunk.system_fingerprint = self._card.fingerprint
        return chunk

    def whole(self, chunks: Iterable[completion_pb2.CompletionChunk]) -> completion_pb2.Completion:
        """All the chunks as one answer."""
        choices: dict[int, completion_pb2.CompletionChoice] = {}
        texts: dict[int, list[str]] = {}
        for chunk in chunks:
            for delta in chunk.choices:
                choice = choices.setdefault(
                    delta.index, completion_pb2.CompletionChoice(index=delta.index)
                )
                texts.setdefault(delta.index, []).append(delta.text)
                _add(choice, delta)
        for index, choice in choices.items():
            choice.text = "".join(texts[index])
        return completion_pb2.Completion(
            id=self._id,
            create_time=Timestamp(seconds=self._created),
            model=self._card.id,
            choices=[choices[index] for index in sorted(choices)],
            usage=self._usage(),
            system_fingerprint=self._card.fingerprint,
        )

    def _usage(self) -> chat_pb2.Usage:
        return chat_pb2.Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_prompt_tokens=sum(self._num_cached_tokens),
        )


@dataclass(frozen=True, slots=True)
class _Told:
    """What a choice's first delta says of its prompt."""

    tokens: list[completion_pb2.PromptToken]
    offsets: list[int]


class _PromptChoices:
    """The choices made of one prompt; nothing is sent before their prompt can be told of."""

    def __init__(
        self,
        request: CompletionRequest,
        place: int,
        prompt: Prompt,
        tokenizer: Tokenizer,
        pools: WorkPools,
    ) -> None:
        self._request = request
        self._pools = pools
        self._prompt = prompt
        self._tokenizer = tokenizer
        first = place * request.n
        self._choices = [_Choice(first + k, request, prompt, tokenizer) for k in range(request.n)]
        self._told: _Told | None = None
        if request.num_prompt_logprobs is None:
            self._told = _Told([], [])
        elif len(prompt.token_ids) == 1:  # it has no log probability that could come
            self._told = self._tell(())

    async def push(self, delta: ChoiceDelta) -> list[completion_pb2.CompletionChoiceDelta]:
        """What may be sent now."""
        self._choices[delta.text.index].add(delta)
        choices = [self._choices[delta.text.index]]
        if self._told is None and delta.text.prompt_logprobs:
            # Off the event loop: a long prompt takes a while.
            self._told = await self._pools.text(self._tell, delta.text.prompt_logprobs)
            choices = self._choices
        if self._told is None:
            return []
        told = self._told
        return [choice.take(told.tokens, told.offsets) for choice in choices if choice.is_ready]

    def _tell(self, logprobs: tuple[TokenLogprobs, ...]) -> _Told:
        text, ids = self._prompt.text, self._prompt.token_ids
        has_offsets = self._request.is_echoed and self._request.num_logprobs is not None
        return _Told(
            prompt_tokens(ids, logprobs, self._tokenizer),
            prompt_offsets(text, ids, self._tokenizer) if has_offsets else [],
        )


class _Choice:
    """What of one choice has not been sent yet, for want of text."""

    def __init__(
        self, index: int, request: CompletionRequest, prompt: Prompt, tokenizer: Tokenizer
    ) -> None:
        self._request = request
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._pending = completion_pb2.CompletionChoiceDelta(index=index)
        self._is_begun = False
        self._offsets = TextOffsets(
            tokenizer,
            start=len(prompt.text) if request.is_echoed else 0,
            skip_special_tokens=request.sampling.skip_special_tokens,
        )

    @property
    def is_ready(self) -> bool:
        return bool(self._pending.text or self._pending.finish_reason)

    def add(self, delta: ChoiceDelta) -> None:
        pending, text = self._pending, delta.text
        pending.text += text.text
        pending.num_tokens += text.num_tokens
        pending.finish_reason = finish_reason(text.finish_reason)
        if (matched := matched_stop(text.matched_stop)) is not None:
            pending.matched_stop.CopyFrom(matched)
        if self._request.returns_token_ids:
            pending.token_ids.extend(text.token_ids)
        if self._request.num_logprobs is not None:
            pending.logprobs.extend(token_logprob(t, self._tokenizer) for t in delta.logprobs)
            pending.text_offsets.extend(self._offsets.push(text.token_ids))

    def take(
        self, prompt_tokens: Sequence[completion_pb2.PromptToken], prompt_offsets: Sequence[int]
    ) -> completion_pb2.CompletionChoiceDelta:
        """What has been added since the last time; at the first time, the prompt before it."""
        taken, self._pending = (
            self._pending,
            completion_pb2.CompletionChoiceDelta(index=self._pending.index),
        )
        if self._is_begun:
            return taken
        self._is_begun = True
        taken.prompt_tokens.extend(prompt_tokens)
        if self._request.returns_token_ids:
            taken.prompt_token_ids.extend(self._prompt.token_ids)
        if self._request.is_echoed:
            taken.text = self._prompt.text + taken.text
            offsets = [*prompt_offsets, *taken.text_offsets]
            taken.text_offsets[:] = offsets
        return taken


def _add(
    choice: completion_pb2.CompletionChoice, delta: completion_pb2.CompletionChoiceDelta
) -> None:
    """All of a delta but its text."""
    choice.finish_reason = delta.finish_reason
    choice.logprobs.extend(delta.logprobs)
    choice.token_ids.extend(delta.token_ids)
    choice.prompt_token_ids.extend(delta.prompt_token_ids)
    choice.prompt_tokens.extend(delta.prompt_tokens)
    choice.text_offsets.extend(delta.text_offsets)
    if delta.HasField("matched_stop"):
        choice.matched_stop.CopyFrom(delta.matched_stop)
