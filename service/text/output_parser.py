"""Parses the output of a model: reasoning, content and tool calls."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from service.domain.backend import TextDelta, ToolCallDelta
from service.domain.engine import FinishReason, TokenOutput
from service.text.output_text import OutputText
from service.text.reasoning import ReasoningMarkers, ReasoningText
from service.text.tool_calls.events import Arguments, CallEnd, CallParser, CallStart, Content, Event
from service.text.tool_calls.syntax import CallSyntax


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The parts that the outputs for one request may have in addition to content.

    Attributes:
        reasoning: Markers around the reasoning; None if there is no reasoning.
        is_reasoning_open: True if the output begins inside the reasoning.
        syntax: The syntax of tool calls; None if there are no tool calls.
        call_names: Names of the functions that may be called.
        is_named: True if the request names the function to call.
        ends_after_call: True if the output ends after its first tool call.
        ends_at_repetition: True if the output ends before a tool call that it has made already. A
            small model that must call a function often repeats its calls without end.
        shown_tokens: The texts of special tokens that mark reasoning or tool calls, by token id.
        has_only_calls: True if the output has no content after its reasoning. Its tokens then have
            no log probabilities, because those of a message are about its content.
    """

    reasoning: ReasoningMarkers | None = None
    is_reasoning_open: bool = False
    syntax: CallSyntax | None = None
    call_names: frozenset[str] = frozenset()
    is_named: bool = False
    ends_after_call: bool = False
    ends_at_repetition: bool = False
    shown_tokens: Mapping[int, str] = field(default_factory=dict)
    has_only_calls: bool = False


class OutputParser:
    """Converts the tokens of one sequence to deltas of reasoning, content and tool calls.

    The text of a delta never contains a marker or a part of one.

    Args:
        text: Converts the sequence's tokens to text. Nothing else may use it.
    """

    def __init__(self, output_format: OutputFormat, text: OutputText) -> None:
        self._format = output_format
        self._text = text
        self._reasoning: ReasoningText | None = None
        if output_format.reasoning is not None:
            is_open = output_format.is_reasoning_open
            self._reasoning = ReasoningText(output_format.reasoning, is_open=is_open)
        self._call_parser: CallParser | None = None
        if output_format.syntax is not None:
            self._call_parser = output_format.syntax.parser(output_format.call_names)
        self._complete_calls: list[tuple[str, str]] = []
        self._call: tuple[str, str] | None = None  # the incomplete call: its name and arguments
        self._is_over = False

    def push(self, output: TokenOutput) -> list[TextDelta]:
        """Return the deltas of an output. A delta with a finish reason is the sequence's last.

        The sequence may end before the engine ends it, in the middle of an output.
        """
        if self._reasoning is None or self._reasoning.is_over or len(output.token_ids) < 2:
            return [self._parse(self._text.push(output))]
        # Reasoning tokens are counted one by one.
        deltas = []
        for piece in _single_tokens(output):
            deltas.append(self._parse(self._text.push(piece)))
            if deltas[-1].finish_reason is not None:
                break
        return deltas

    def _parse(self, delta: TextDelta) -> TextDelta:
        """Divide a delta's text into reasoning, content and calls. Return the same delta."""
        if self._reasoning is None and self._call_parser is None:
            return delta
        reasoning, text, num_reasoning_tokens = "", delta.text, 0
        is_last = delta.finish_reason is not None
        if self._reasoning is not None:
            reasoning, text = self._reasoning.push(delta.text, delta.num_tokens)
            if is_last:
                held_reasoning, held = self._reasoning.flush()
                reasoning, text = reasoning + held_reasoning, text + held
            num_reasoning_tokens = self._reasoning.num_tokens
        calls: tuple[ToolCallDelta, ...] = ()
        if self._format.has_only_calls:
            delta.logprobs = ()
        if self._call_parser is not None:
            events = self._call_parser.push(text)
            if is_last:
                events += self._call_parser.flush()
            text, calls = self._apply(events)
            if is_last and self._call is not None and self._delays_calls:
                calls += (self._first_piece(self._call),)
        delta.text, delta.reasoning, delta.tool_calls = text, reasoning, calls
        delta.num_reasoning_tokens = num_reasoning_tokens
        delta.finish_reason = self._finish_reason(delta.finish_reason)
        return delta

    @property
    def _delays_calls(self) -> bool:
        """True if a call is sent only when it is complete, because it may be a repetition."""
        return self._format.ends_at_repetition and bool(self._complete_calls)

    def _apply(self, events: list[Event]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Apply the events. Return the new content, and one delta of each call with new text."""
        content = ""
        pieces: dict[int, ToolCallDelta] = {}
        for event in events:
            if self._is_over:
                break
            index = len(self._complete_calls)
            match event, self._call:
                case Content(text), _:
                    content += text
                case CallStart(name), _:
                    self._call = (name, "")
                    if not self._delays_calls:
                        pieces[index] = self._first_piece(self._call)
                case Arguments(text), (name, arguments):
                    self._call = (name, arguments + text)
                    if not self._delays_calls:
                        piece = pieces.get(index, ToolCallDelta(index))
                        pieces[index] = replace(piece, arguments=piece.arguments + text)
                case CallEnd(), (name, arguments):
                    self._end_call(name, arguments, pieces)
        return content, tuple(pieces.values())

    def _end_call(self, name: str, arguments: str, pieces: dict[int, ToolCallDelta]) -> None:
        """Complete a call. A delayed call is added to `pieces`, or ends the output if repeated."""
        call = (name, arguments)
        self._call = None
        if self._delays_calls:
            if call in self._complete_calls:
                self._is_over = True
                return
            pieces[len(self._complete_calls)] = self._first_piece(call)
        self._complete_calls.append(call)
        self._is_over = self._format.ends_after_call

    def _first_piece(self, call: tuple[str, str]) -> ToolCallDelta:
        """Return the first piece of a call: its new id, its name and its arguments so far."""
        return ToolCallDelta(len(self._complete_calls), f"call_{secrets.token_hex(12)}", *call)

    def _finish_reason(self, reason: FinishReason | None) -> FinishReason | None:
        if self._is_over:
            reason = FinishReason.STOP
        has_calls = bool(self._complete_calls) and self._call is None and not self._format.is_named
        return FinishReason.TOOL_CALLS if reason is FinishReason.STOP and has_calls else reason


def _single_tokens(output: TokenOutput) -> Iterator[TokenOutput]:
    """Yield an output of at least one token, token by token."""
    last = len(output.token_ids) - 1
    for i, token_id in enumerate(output.token_ids):
        yield replace(
            output,
            token_ids=(token_id,),
            finish_reason=output.finish_reason if i == last else None,
            logprobs=output.logprobs[i : i + 1],
            prompt_logprobs=output.prompt_logprobs if i == 0 else (),
        )
