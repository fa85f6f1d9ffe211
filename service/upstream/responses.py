"""Converts the responses of upstreams to text deltas."""

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from service.domain.backend import (
    DecodedLogprob,
    GenerationRequest,
    TextDelta,
    TokenUsage,
    ToolCallDelta,
)
from service.domain.chat import ChatRequest, ToolMode
from service.domain.completion import CompletionRequest
from service.domain.engine import EngineTimings, FinishReason
from service.errors import UpstreamDown, UpstreamInvalidResponse
from service.upstream.logprobs import decoded_logprobs, prompt_logprobs
from service.upstream.wire import Choice, Completion, Delta, Logprobs, ToolCallPiece, Usage

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
# Reasons of outputs that are not complete.
_FAILURES = ("abort", "error", "cancelled")


class ResponseReader:
    """Converts the response to one request.

    Args:
        has_upstream_echo: True if the texts of the response begin with the prompts.
    """

    def __init__(self, request: GenerationRequest, *, has_upstream_echo: bool = False) -> None:
        self._request = request
        self._has_echo = has_upstream_echo
        num_prompts = len(request.prompts) if isinstance(request, CompletionRequest) else 1
        self._choices = [_ChoiceState() for _ in range(num_prompts * request.n)]
        self._usage: Usage | None = None
        self._has_total = False
        self._num_counted = 0  # generated tokens in the deltas so far
        self._prompt_token_ids: tuple[int, ...] = ()
        self._last: TextDelta | None = None  # the delta that ends the last choice
        self._sent_s = time.monotonic()
        self._responded_s: float | None = None
        self._first_token_s: float | None = None

    @property
    def is_finished(self) -> bool:
        """True if every choice has ended."""
        return all(choice.is_finished for choice in self._choices)

    @property
    def is_complete(self) -> bool:
        """True if every choice has ended and the numbers of all tokens have come after that.

        Nothing else follows that is read.
        """
        return self._has_total

    def push(self, piece: Completion) -> list[TextDelta]:
        """Return the deltas of a completion, or of the next chunk of it.

        The delta that ends the last choice comes from `finish`, since the usage follows it.

        Raises:
            UpstreamInvalidResponse: The piece cannot be used.
            UpstreamDown: The upstream has aborted a choice.
        """
        if self._responded_s is None:
            self._responded_s = time.monotonic()
        if piece.usage is not None:
            self._usage = piece.usage
            # Other chunks have the numbers so far.
            self._has_total = self.is_finished and not piece.choices
        self._prompt_token_ids = tuple(piece.prompt_token_ids or ()) or self._prompt_token_ids
        deltas = [delta for choice in piece.choices or () for delta in self._read(choice, piece)]
        if piece.usage is not None and deltas:
            deltas[-1] = replace(deltas[-1], usage=self._reported(deltas[-1].num_tokens))
        return deltas

    def finish(self) -> TextDelta:
        """Return the last delta. Call it at the end of the response.

        Raises:
            UpstreamDown: The response is not complete.
        """
        if self._last is None:
            raise UpstreamDown("The upstream service ended its response before it was complete.")
        if self._usage is None or self._usage.completion_tokens is None:
            return self._last
        num_missing = max(0, self._usage.completion_tokens - self._num_counted)
        details = self._usage.completion_tokens_details
        num_reasoning = (details and details.reasoning_tokens) or self._usage.reasoning_tokens or 0
        self._num_counted += num_missing
        last = replace(
            self._last,
            num_tokens=self._last.num_tokens + num_missing,
            num_reasoning_tokens=num_reasoning,
            timings=self._timings(num_missing),
        )
        return replace(last, usage=self._reported(0))

    def _reported(self, num_pending: int) -> TokenUsage:
        usage = self._usage or Usage()
        prompt, output = usage.prompt_tokens_details, usage.completion_tokens_details
        num_generated = usage.completion_tokens
        return TokenUsage(
            usage.prompt_tokens or 0,
            self._num_counted + num_pending if num_generated is None else num_generated,
            (prompt and prompt.cached_tokens) or 0,
            (output and output.reasoning_tokens) or usage.reasoning_tokens or 0,
        )

    def _read(self, choice: Choice, piece: Completion) -> Iterator[TextDelta]:
        if not 0 <= choice.index < len(self._choices):
            raise UpstreamInvalidResponse(
                "The upstream service returned a choice that was not requested."
            )
        state = self._choices[choice.index]
        if state.is_finished:  # a chunk after the last one has nothing but numbers
            return
        delta = self._delta(choice, piece, state)
        reason = self._finish_reason(choice, state)
        if reason is None:
            if _has_output(delta):
                yield delta
            return
        state.is_finished = True
        last = replace(delta, finish_reason=reason, matched_stop=self._matched_stop(choice))
        if self.is_finished:
            self._last = last
        else:
            yield last

    def _delta(self, choice: Choice, piece: Completion, state: "_ChoiceState") -> TextDelta:
        request, message = self._request, choice.delta or choice.message or Delta()
        prompt_index, index = divmod(choice.index, request.n)
        token_ids = tuple(choice.token_ids or ())
        logprobs = self._logprobs(choice.logprobs, token_ids)
        text, calls = _text(message, choice), tuple(state.tool_calls(message))
        offsets = self._text_offsets(choice.logprobs, logprobs, state, prompt_index)
        of_prompt = self._prompt_logprobs(choice, piece, state)
        if self._has_echo and not state.has_prompt:
            of_prompt, logprobs = self._split(logprobs, offsets, prompt_index)
        state.has_prompt = True
        reasoning = message.reasoning_content or message.reasoning or ""
        num_tokens = self._num_tokens(
            piece, len(token_ids) or len(logprobs), is_any=bool(text or reasoning or calls)
        )
        self._num_counted += num_tokens
        return TextDelta(
            text,
            num_tokens,
            index=index,
            token_ids=token_ids,
            logprobs=logprobs,
            prompt_logprobs=of_prompt,
            reasoning=reasoning,
            tool_calls=calls,
            prompt_index=prompt_index,
            text_offsets=offsets,
            timings=self._timings(num_tokens),
            prompt_token_ids=tuple(choice.prompt_token_ids or ()) or self._prompt_token_ids,
        )

    def _num_tokens(self, piece: Completion, num_listed: int, *, is_any: bool) -> int:
        """Return the number of generated tokens of a chunk.

        Without the numbers of the upstream it is at least 1 if there is any output. The last delta
        has the rest.
        """
        usage = piece.usage
        if len(self._choices) == 1 and usage is not None and usage.completion_tokens is not None:
            return max(0, usage.completion_tokens - self._num_counted)
        return num_listed or int(is_any)

    def _timings(self, num_tokens: int) -> EngineTimings:
        now_s = time.monotonic()
        if num_tokens and self._first_token_s is None:
            self._first_token_s = now_s
        return EngineTimings(
            self._sent_s,
            self._responded_s,
            self._first_token_s,
            now_s if self._first_token_s is not None else None,
            self._num_counted,
        )

    def _logprobs(
        self, logprobs: Logprobs | None, token_ids: Sequence[int]
    ) -> tuple[DecodedLogprob, ...]:
        if self._request.num_logprobs is None:
            return ()
        return decoded_logprobs(logprobs, self._request.num_logprobs, token_ids)

    def _prompt_logprobs(
        self, choice: Choice, piece: Completion, state: "_ChoiceState"
    ) -> tuple[DecodedLogprob, ...]:
        number = self._request.num_prompt_logprobs
        # All choices of a prompt have the same. Those of the first one are used.
        if number is None or state.has_prompt or choice.index % self._request.n:
            return ()
        entries = choice.prompt_logprobs or piece.prompt_logprobs
        token_ids = choice.prompt_token_ids or piece.prompt_token_ids or ()
        return prompt_logprobs(entries, number, token_ids)

    def _split(
        self, logprobs: tuple[DecodedLogprob, ...], offsets: tuple[int, ...], prompt_index: int
    ) -> tuple[tuple[DecodedLogprob, ...], tuple[DecodedLogprob, ...]]:
        """Return the log probabilities of the prompt, and those of the output."""
        if not isinstance(self._request, CompletionRequest):
            return (), logprobs
        prompt = self._request.prompts[prompt_index]
        if isinstance(prompt, str):
            num_prompt = sum(offset < len(prompt) for offset in offsets)
        else:
            num_prompt = min(
                len(prompt), self._request.truncate_prompt_tokens or len(prompt), len(logprobs)
            )
        return logprobs[:num_prompt], logprobs[num_prompt:]

    def _text_offsets(
        self,
        logprobs: Logprobs | None,
        found: tuple[DecodedLogprob, ...],
        state: "_ChoiceState",
        prompt_index: int,
    ) -> tuple[int, ...]:
        """Return the offset in the choice's text of each token, for text completions."""
        if isinstance(self._request, ChatRequest) or not found:
            return ()
        start = 0
        if self._request.is_echoed and not self._has_echo:
            prompt = self._request.prompts[prompt_index]
            start = len(prompt) if isinstance(prompt, str) else 0
        offsets = (logprobs and logprobs.text_offset) or []
        if len(offsets) != len(found):  # llama.cpp has none
            offsets = []
            for each in found:
                offsets.append(state.text_length)
                state.text_length += len(each.token.decode(errors="replace"))
        return tuple(start + offset for offset in offsets)

    def _finish_reason(self, choice: Choice, state: "_ChoiceState") -> FinishReason | None:
        reason = choice.finish_reason
        if not reason:  # some services send "" instead of null; a whole message has ended
            return FinishReason.STOP if choice.message is not None else None
        if reason in _FAILURES:
            raise UpstreamDown("The upstream service aborted the request.")
        known = _FINISH_REASONS.get(reason, FinishReason.STOP)
        request = self._request
        # A call that the request names ends with `stop`, as in OpenAI's API.
        is_named = isinstance(request, ChatRequest) and request.tool_mode is ToolMode.NAMED
        if known is FinishReason.STOP and state.call_ids and not is_named:
            return FinishReason.TOOL_CALLS
        return known

    def _matched_stop(self, choice: Choice) -> str | int | None:
        """Return the request's stop string or stop token that ended the choice, if any."""
        sampling = self._request.sampling
        for stop in (choice.stop_reason, choice.matched_stop):
            if stop in sampling.stop or stop in sampling.stop_token_ids:
                return stop
        return None


@dataclass(slots=True)
class _ChoiceState:
    """The state of one choice.

    Attributes:
        call_ids: The ids of the tool calls so far, by index.
        text_length: Length of the texts of the tokens so far, in characters.
        has_prompt: True if the choice has had a piece.
    """

    call_ids: dict[int, str] = field(default_factory=dict)
    text_length: int = 0
    is_finished: bool = False
    has_prompt: bool = False

    def tool_calls(self, message: Delta) -> Iterator[ToolCallDelta]:
        """Yield the pieces of tool calls. Only the first piece of a call has its id and name."""
        for i, piece in enumerate(message.tool_calls or ()):
            index = self._index(piece, i)
            function = piece.function
            name = (function and function.name) or ""
            arguments = _arguments(function and function.arguments)
            if index in self.call_ids:
                if arguments:
                    yield ToolCallDelta(index, arguments=arguments)
            else:
                self.call_ids[index] = piece.id or f"call_{uuid.uuid4().hex}"
                yield ToolCallDelta(index, self.call_ids[index], name, arguments)

    def _index(self, piece: ToolCallPiece, position: int) -> int:
        """Return the index of a tool call. Some services send none."""
        if piece.index is not None:
            return piece.index
        known = [index for index, call_id in self.call_ids.items() if call_id == piece.id]
        if known:
            return known[0]
        return len(self.call_ids) if piece.id else position


def _has_output(delta: TextDelta) -> bool:
    return bool(
        delta.text
        or delta.reasoning
        or delta.tool_calls
        or delta.logprobs
        or delta.prompt_logprobs
        or delta.num_tokens
    )


def _text(message: Delta, choice: Choice) -> str:
    """Return the text of a message or choice. A refusal is a text, too. Other parts are dropped."""
    content: Any = message.content if choice.text is None else choice.text
    if isinstance(content, list):
        content = "".join(_part_text(part) for part in content)
    return (content or "") + (message.refusal or "")


def _part_text(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    return text if isinstance(text, str) else ""


def _arguments(arguments: Any) -> str:
    """Return the arguments of a tool call as text. Some services send the object itself."""
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return msgspec.json.encode(arguments).decode()
