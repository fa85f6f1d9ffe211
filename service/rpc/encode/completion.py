"""Encodes text completion deltas as protobuf messages."""

import time
import uuid
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.backend import Prompt, TextDelta, TokenUsage
from service.domain.completion import CompletionRequest
from service.domain.model import ModelCard
from service.rpc.encode.finish import finish_reason, matched_stop
from service.rpc.encode.logprobs import prompt_tokens, token_logprobs
from service.rpc.encode.usage import usage


class CompletionEncoder:
    """The messages of one text completion: either the completion or its chunks, in order."""

    def __init__(
        self, card: ModelCard, request: CompletionRequest, prompts: Sequence[Prompt]
    ) -> None:
        self._card = card
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._num_prompt_tokens = sum(prompt.num_tokens or 0 for prompt in prompts)
        self._prompts = [_PromptChoices(request, i, p) for i, p in enumerate(prompts)]
        self._num_open = len(prompts) * request.n
        self._num_tokens = 0
        self._num_cached_tokens = [0] * len(prompts)
        self._is_first = True

    def completion(self, deltas: Sequence[TextDelta]) -> completion_pb2.Completion:
        """Return the completion. `deltas` are all deltas of all choices."""
        choices: dict[int, completion_pb2.CompletionChoice] = {}
        texts: dict[int, list[str]] = {}
        for chunk in filter(None, map(self.chunk, deltas)):
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
            usage=self._usage(deltas[-1].usage),
            system_fingerprint=self._card.fingerprint,
        )

    def chunk(self, delta: TextDelta) -> completion_pb2.CompletionChunk | None:
        """Return the chunk of the next delta; None if there is neither text nor a finish reason."""
        self._num_tokens += delta.num_tokens
        self._num_cached_tokens[delta.prompt_index] = delta.num_cached_tokens
        choices = self._prompts[delta.prompt_index].push(delta)
        if not choices:
            return None
        self._num_open -= sum(bool(choice.finish_reason) for choice in choices)
        chunk = completion_pb2.CompletionChunk(choices=choices)
        if self._is_first or not self._num_open:
            chunk.usage.CopyFrom(self._usage(delta.usage))
        if self._is_first:
            self._is_first = False
            chunk.id = self._id
            chunk.create_time.seconds = self._created
            chunk.model = self._card.id
            chunk.system_fingerprint = self._card.fingerprint
        return chunk

    def _usage(self, reported: TokenUsage | None) -> chat_pb2.Usage:
        if reported is not None:
            return usage(reported)
        return chat_pb2.Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=self._num_tokens,
            cached_prompt_tokens=sum(self._num_cached_tokens),
        )


class _PromptChoices:
    """The choices of one prompt. They are sent after the prompt's log probabilities are known."""

    def __init__(self, request: CompletionRequest, prompt_index: int, prompt: Prompt) -> None:
        first = prompt_index * request.n
        self._choices = [_Choice(first + k, request, prompt) for k in range(request.n)]
        self._prompt_tokens: list[completion_pb2.PromptToken] | None = None
        if request.num_prompt_logprobs is None:
            self._prompt_tokens = []

    def push(self, delta: TextDelta) -> list[completion_pb2.CompletionChoiceDelta]:
        """Add a delta, and return the choice deltas that can be sent now."""
        self._choices[delta.index].add(delta)
        choices = [self._choices[delta.index]]
        if self._prompt_tokens is None and delta.prompt_logprobs:
            self._prompt_tokens = prompt_tokens(delta.prompt_logprobs)
            choices = self._choices
        if self._prompt_tokens is None:
            return []
        return [choice.take(self._prompt_tokens) for choice in choices if choice.is_ready]


class _Choice:
    """The part of one choice that has not been sent yet."""

    def __init__(self, index: int, request: CompletionRequest, prompt: Prompt) -> None:
        self._request = request
        self._prompt = prompt
        self._pending = completion_pb2.CompletionChoiceDelta(index=index)
        self._is_begun = False
        self._prompt_token_ids = prompt.token_ids

    @property
    def is_ready(self) -> bool:
        return bool(self._pending.text or self._pending.finish_reason)

    def add(self, delta: TextDelta) -> None:
        pending = self._pending
        self._prompt_token_ids = self._prompt_token_ids or delta.prompt_token_ids
        pending.text += delta.text
        pending.num_tokens += delta.num_tokens
        pending.finish_reason = finish_reason(delta.finish_reason)
        if (matched := matched_stop(delta.matched_stop)) is not None:
            pending.matched_stop.CopyFrom(matched)
        if self._request.returns_token_ids:
            pending.token_ids.extend(delta.token_ids)
        pending.logprobs.extend(token_logprobs(delta.logprobs))
        pending.text_offsets.extend(delta.text_offsets)

    def take(
        self, prompt_tokens: Sequence[completion_pb2.PromptToken]
    ) -> completion_pb2.CompletionChoiceDelta:
        """Return the part that was added since the last call, and start a new one.

        The first part also has the prompt's tokens, and the prompt's text if it is to be echoed.
        """
        taken, self._pending = (
            self._pending,
            completion_pb2.CompletionChoiceDelta(index=self._pending.index),
        )
        if self._is_begun:
            return taken
        self._is_begun = True
        taken.prompt_tokens.extend(prompt_tokens)
        if self._request.returns_token_ids:
            taken.prompt_token_ids.extend(self._prompt_token_ids)
        if self._request.is_echoed:
            taken.text = self._prompt.text + taken.text
            offsets = [*self._prompt.text_offsets, *taken.text_offsets]
            taken.text_offsets[:] = offsets
        return taken


def _add(
    choice: completion_pb2.CompletionChoice, delta: completion_pb2.CompletionChoiceDelta
) -> None:
    """Add the fields of a delta, except its text."""
    choice.finish_reason = delta.finish_reason
    choice.logprobs.extend(delta.logprobs)
    choice.token_ids.extend(delta.token_ids)
    choice.prompt_token_ids.extend(delta.prompt_token_ids)
    choice.prompt_tokens.extend(delta.prompt_tokens)
    choice.text_offsets.extend(delta.text_offsets)
    if delta.HasField("matched_stop"):
        choice.matched_stop.CopyFrom(delta.matched_stop)
