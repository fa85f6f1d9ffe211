"""An answer's text as what it says: thoughts, content and calls of functions."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from service.domain.engine import FinishReason, TokenOutput
from service.text.output_text import CallDelta, TextDelta
from service.text.reasoning import ReasoningMarkers, ReasoningText
from service.text.tool_calls.events import Arguments, CallEnd, CallParser, CallStart, Content, Event
from service.text.tool_calls.syntax import CallSyntax


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers to one request are to be read.

    `call_names` are the functions that may be called; with `ends_after_call` an answer ends with
    its first call, and with `ends_at_repetition` before a call that it has made already: a small
    model that has to call does not know how to stop. `is_named` says that the caller has chosen the
    function. With `has_only_calls` the answer has no content, and its tokens no log probabilities:
    those of a message are about its content. `shown_tokens` are special tokens that mark reasoning
    or calls, by their ids.
    """

    reasoning: ReasoningMarkers | None = None
    is_thinking: bool = False  # from the first word on
    syntax: CallSyntax | None = None
    call_names: frozenset[str] = frozenset()
    is_named: bool = False
    ends_after_call: bool = False
    ends_at_repetition: bool = False
    shown_tokens: Mapping[int, str] = field(default_factory=dict)
    has_only_calls: bool = False  # after its reasoning, if it has any

    def reader(self) -> "AnswerReader":
        """For one answer."""
        return AnswerReader(self)


class AnswerReader:
    """Sorts one answer's deltas. Markers appear in none, nor any part of one."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._reasoning: ReasoningText | None = None
        if reading.reasoning is not None:
            self._reasoning = ReasoningText(reading.reasoning, is_open=reading.is_thinking)
        self._parser: CallParser | None = None
        if reading.syntax is not None:
            self._parser = reading.syntax.parser(reading.call_names)
        self._made: list[tuple[str, str]] = []  # calls that are complete
        self._call: tuple[str, str] | None = None  # the one that is not: its name and arguments
        self._is_over = False

    def pieces(self, output: TokenOutput) -> Iterator[TokenOutput]:
        """The output as those to be read one by one: while thoughts are counted, each token."""
        if self._reasoning is None or self._reasoning.is_answer or len(output.token_ids) < 2:
            yield output
            return
        last = len(output.token_ids) - 1
        for i, token_id in enumerate(output.token_ids):
            yield replace(
                output,
                token_ids=(token_id,),
                finish_reason=output.finish_reason if i == last else None,
                logprobs=output.logprobs[i : i + 1],
                prompt_logprobs=output.prompt_logprobs if i == 0 else (),
            )

    def read(self, delta: TextDelta) -> TextDelta:
        """The delta with its text sorted. It may be the last though the engine would go on."""
        if self._reasoning is None and self._parser is None:
            return delta
        reasoning, text, num_reasoning_tokens = "", delta.text, 0
        is_last = delta.finish_reason is not None
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(delta.text, delta.num_tokens)
            if is_last:
                held_reasoning, held = self._reasoning.flush()
                reasoning, text = reasoning + held_reasoning, text + held
            num_reasoning_tokens = self._reasoning.num_tokens
        calls: tuple[CallDelta, ...] = ()
        if self._reading.has_only_calls:
            delta = replace(delta, logprobs=())
        if self._parser is not None:
            events = self._parser.push(text)
            if is_last:
                events += self._parser.flush()
            text, calls = self._sorted(events)
            if is_last and self._call is not None and self._holds_calls:
                calls += (self._whole(self._call),)
        return replace(
            delta,
            text=text,
            reasoning=reasoning,
            num_reasoning_tokens=num_reasoning_tokens,
            calls=calls,
            finish_reason=self._finish_reason(delta.finish_reason),
        )

    @property
    def _holds_calls(self) -> bool:
        """Whether a call is only told when it is complete, since it may be a repetition."""
        return self._reading.ends_at_repetition and bool(self._made)

    def _sorted(self, events: list[Event]) -> tuple[str, tuple[CallDelta, ...]]:
        """The content, and a piece of each call."""
        content = ""
        pieces: dict[int, CallDelta] = {}
        for event in events:
            if self._is_over:
                break
            index = len(self._made)
            match event, self._call:
                case Content(text), _:
                    content += text
                case CallStart(name), _:
                    self._call = (name, "")
                    if not self._holds_calls:
                        pieces[index] = self._whole(self._call)
                case Arguments(text), (name, arguments):
                    self._call = (name, arguments + text)
                    if not self._holds_calls:
                        piece = pieces.get(index, CallDelta(index))
                        pieces[index] = replace(piece, arguments=piece.arguments + text)
                case CallEnd(), (name, arguments):
                    self._end(name, arguments, pieces)
        return content, tuple(pieces.values())

    def _end(self, name: str, arguments: str, pieces: dict[int, CallDelta]) -> None:
        """A call is complete; one that was held back joins `pieces`, or ends the answer."""
        call = (name, arguments)
        self._call = None
        if self._holds_calls:
            if call in self._made:
                self._is_over = True
                return
            pieces[len(self._made)] = self._whole(call)
        self._made.append(call)
        self._is_over = self._reading.ends_after_call

    def _whole(self, call: tuple[str, str]) -> CallDelta:
        """The call as far as it is known, in one piece."""
        return CallDelta(len(self._made), f"call_{secrets.token_hex(12)}", *call)

    def _finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        if self._is_over:
            reason = FinishReason.STOP
        has_calls = bool(self._made) and self._call is None and not self._reading.is_named
        return FinishReason.TOOL_CALLS if reason is FinishReason.STOP and has_calls else reason
