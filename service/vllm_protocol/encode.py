"""Encodes the deltas of a generation as the responses of vLLM's protocol."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from smg_grpc_proto.generated import vllm_engine_pb2

from chatrpc.v1 import chat_pb2, completion_pb2
from service.domain.backend import DecodedLogprob, TextDelta
from service.rpc.decode.sampling import num_choices
from service.rpc.encode.finish import finish_reason
from service.vllm_protocol.decode import GenerateParams

_ABORT = "abort"

Reported: TypeAlias = completion_pb2.CompletionChunk | completion_pb2.Completion | None


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """A message of a response, and its report to telemetry in the terms of `chatrpc.v1`.

    Attributes:
        reported: A chunk, or the whole completion, without text. None if it has been reported.
    """

    message: vllm_engine_pb2.GenerateResponse
    reported: Reported

    def SerializeToString(self) -> bytes:  # noqa: N802  # as messages call it
        return self.message.SerializeToString()


@dataclass(slots=True)
class _Choice:
    """The output of one sequence so far.

    Attributes:
        logprobs: Log probabilities, if they are sent at the end.
        finish_reason: The reason why the sequence ended, as the protocol writes it; "" before.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[DecodedLogprob] = field(default_factory=list)
    finish_reason: str = ""
    matched_stop: str | int | None = None
    num_cached_tokens: int = 0


class GenerateEncoder:
    """The messages of one response, in order.

    A stream has a chunk for each delta, and a `GenerateComplete` at the end of each sequence. That
    has the ids of all tokens of the sequence, but the log probabilities are only in the chunks.
    Without streaming, a `GenerateComplete` for each sequence is sent after the last has ended.

    Messages are kept until `take` returns them, so a call that is aborted loses none.
    """

    def __init__(self, params: GenerateParams) -> None:
        self._params = params
        self._choices = [_Choice() for _ in range(num_choices(params.sampling))]
        self._num_prompt_tokens = 0 if isinstance(params.prompt, str) else len(params.prompt)
        self._prompt_logprobs: Sequence[DecodedLogprob] = ()
        self._is_begun = False
        self._outputs: deque[GenerateOutput] = deque()  # not taken yet

    def note_prompt(self, num_tokens: int) -> None:
        """Note the number of tokens of the prompt, after it has been tokenized and truncated."""
        self._num_prompt_tokens = num_tokens

    @property
    def is_finished(self) -> bool:
        """True if all sequences have ended."""
        return all(choice.finish_reason for choice in self._choices)

    def push(self, delta: TextDelta) -> bool:
        """Add the messages that the next delta completes. No other method may run meanwhile.

        Returns:
            True if there are messages to take.
        """
        if not (delta.num_tokens or delta.finish_reason):
            return bool(self._outputs)
        choice = self._choices[delta.index]
        choice.token_ids += delta.token_ids
        choice.num_cached_tokens = delta.num_cached_tokens
        choice.matched_stop = delta.matched_stop
        if delta.finish_reason is not None:
            choice.finish_reason = delta.finish_reason.value
        if self._params.is_streamed:
            self._outputs += self._streamed(delta, choice)
        else:
            choice.logprobs += delta.logprobs
            self._prompt_logprobs = delta.prompt_logprobs or self._prompt_logprobs
            if self.is_finished:
                self._outputs += self._completes()
        return bool(self._outputs)

    def abort(self) -> None:
        """End the unfinished sequences with `abort`, and add the messages of their end."""
        unfinished = [i for i, choice in enumerate(self._choices) if not choice.finish_reason]
        for i in unfinished:
            self._choices[i].finish_reason = _ABORT
        ended = unfinished if self._params.is_streamed else range(len(self._choices))
        self._outputs += [GenerateOutput(self._complete(i), None) for i in ended]

    def take(self) -> Iterator[GenerateOutput]:
        """Yield the messages that have not been taken yet, in order."""
        while self._outputs:
            yield self._outputs.popleft()

    def _streamed(self, delta: TextDelta, choice: _Choice) -> list[GenerateOutput]:
        chunk = vllm_engine_pb2.GenerateStreamChunk(
            token_ids=delta.token_ids,
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=delta.num_tokens,
            cached_tokens=delta.num_cached_tokens,
            output_logprobs=self._output_logprobs(delta.logprobs),
            input_logprobs=self._input_logprobs(delta.prompt_logprobs),
            index=delta.index,
        )
        message = vllm_engine_pb2.GenerateResponse(chunk=chunk)
        outputs = [GenerateOutput(message, self._reported_chunk(delta))]
        if choice.finish_reason:
            outputs.append(GenerateOutput(self._complete(delta.index), None))
        return outputs

    def _completes(self) -> list[GenerateOutput]:
        reported: list[Reported] = [None] * len(self._choices)
        reported[0] = completion_pb2.Completion(
            id=self._params.request_id,
            model=self._params.model,
            choices=[
                completion_pb2.CompletionChoice(
                    index=i, finish_reason=_FINISH_REASONS[choice.finish_reason]
                )
                for i, choice in enumerate(self._choices)
            ],
            usage=self._usage(),
        )
        return [GenerateOutput(self._complete(i), each) for i, each in enumerate(reported)]

    def _complete(self, index: int) -> vllm_engine_pb2.GenerateResponse:
        choice = self._choices[index]
        matched = choice.matched_stop
        complete = vllm_engine_pb2.GenerateComplete(
            output_ids=choice.token_ids,
            finish_reason=choice.finish_reason,
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=len(choice.token_ids),
            cached_tokens=choice.num_cached_tokens,
            output_logprobs=self._output_logprobs(choice.logprobs),
            input_logprobs=self._input_logprobs(self._prompt_logprobs),
            index=index,
        )
        if isinstance(matched, str):
            complete.matched_stop_str = matched
        elif matched is not None:
            complete.matched_token_id = matched
        return vllm_engine_pb2.GenerateResponse(complete=complete)

    def _reported_chunk(self, delta: TextDelta) -> completion_pb2.CompletionChunk:
        chunk = completion_pb2.CompletionChunk(
            choices=[
                completion_pb2.CompletionChoiceDelta(
                    index=delta.index,
                    num_tokens=delta.num_tokens,
                    finish_reason=finish_reason(delta.finish_reason),
                )
            ]
        )
        if not self._is_begun or self.is_finished:
            chunk.usage.CopyFrom(self._usage())
        if not self._is_begun:
            self._is_begun = True
            chunk.id = self._params.request_id
            chunk.model = self._params.model
        return chunk

    def _usage(self) -> chat_pb2.Usage:
        return chat_pb2.Usage(
            prompt_tokens=self._num_prompt_tokens,
            completion_tokens=sum(len(choice.token_ids) for choice in self._choices),
            cached_prompt_tokens=max(choice.num_cached_tokens for choice in self._choices),
        )

    def _output_logprobs(
        self, logprobs: Sequence[DecodedLogprob]
    ) -> vllm_engine_pb2.OutputLogProbs | None:
        if not logprobs:
            return None
        return vllm_engine_pb2.OutputLogProbs(
            token_logprobs=[each.logprob for each in logprobs if each.logprob is not None],
            token_ids=_ids(logprobs),
            top_logprobs=_tops(logprobs) if self._params.num_logprobs else (),
        )

    def _input_logprobs(
        self, logprobs: Sequence[DecodedLogprob]
    ) -> vllm_engine_pb2.InputLogProbs | None:
        if not logprobs:
            return None
        return vllm_engine_pb2.InputLogProbs(
            token_logprobs=[
                vllm_engine_pb2.InputTokenLogProb(value=each.logprob) for each in logprobs
            ],
            token_ids=_ids(logprobs),
            top_logprobs=_tops(logprobs) if self._params.num_prompt_logprobs else (),
        )


_FINISH_REASONS = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
}


def _ids(logprobs: Iterable[DecodedLogprob]) -> list[int]:
    return [each.token_id for each in logprobs if each.token_id is not None]


def _tops(logprobs: Iterable[DecodedLogprob]) -> list[vllm_engine_pb2.TopLogProbs]:
    """Return the most likely tokens at each position; none at the first of a prompt."""
    return [
        vllm_engine_pb2.TopLogProbs(
            values=[top.logprob for top in each.top if top.logprob is not None],
            token_ids=_ids(each.top),
        )
        for each in logprobs
    ]
