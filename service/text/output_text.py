"""Converts the engine's tokens of one sequence to text deltas."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from service.domain.backend import DecodedLogprob, TextDelta
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.domain.model import Tokenizer
from service.domain.sampling import SamplingParams
from service.text.detokenizer import Detokenizer
from service.text.stop_strings import StopStrings


class OutputText:
    """The text of one sequence, without incomplete characters and without parts of stop strings.

    Args:
        markers: The texts of special tokens that appear in the text, by token id.
        has_all_logprobs: If True, a delta has the log probabilities of all its tokens. Otherwise it
            has only those of tokens whose text begins in the delta.
        prompt_index: Index of the prompt in the request.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        markers: Mapping[int, str] | None = None,
        *,
        has_all_logprobs: bool = False,
        prompt_index: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompt_index = prompt_index
        self._has_all_logprobs = has_all_logprobs
        self._markers = markers or {}
        self._detokenizer = Detokenizer(tokenizer, skip_special_tokens=sampling.skip_special_tokens)
        self._stop_strings = StopStrings(
            sampling.stop, is_included=sampling.include_stop_str_in_output
        )
        self._has_stop_strings = bool(sampling.stop)
        self._stop_token_ids = sampling.stop_token_ids
        self._includes_stop = sampling.include_stop_str_in_output
        self._logprobs = _PendingLogprobs()

    def push(self, output: TokenOutput) -> TextDelta:
        """Return the text that is complete after `output`.

        A delta with a finish reason is the last.

        A stop string ends the text at the token that completes it, even if the engine has generated
        more. A token that stopped the sequence is counted. It is part of the text only if the
        request includes stop strings in the output.
        """
        token_ids, finish_reason = output.token_ids, output.finish_reason
        is_stopped = finish_reason is FinishReason.STOP
        ends_in_stop = is_stopped and not self._includes_stop
        spoken = token_ids[:-1] if ends_in_stop else token_ids
        text, num_tokens = self._read(spoken, output.logprobs)
        matched_stop: str | int | None = self._stop_strings.matched
        if matched_stop is None and finish_reason is not None:
            num_tokens = len(token_ids)
            if is_stopped:  # at a limit, an incomplete character is dropped
                text += self._stop_strings.push(self._detokenizer.flush())
            text += self._stop_strings.flush()
            matched_stop = self._stop_strings.matched
            ended_by = token_ids[-1] if is_stopped and token_ids else None
            if matched_stop is None and ended_by in self._stop_token_ids:
                matched_stop = ended_by
        if self._stop_strings.matched is not None:
            finish_reason = FinishReason.STOP
        if self._has_all_logprobs:
            logprobs = output.logprobs[:num_tokens]
        else:
            logprobs = self._logprobs.release(len(text), is_last=finish_reason is not None)
        return TextDelta(
            text,
            num_tokens,
            finish_reason,
            matched_stop,
            output.num_cached_tokens,
            output.index,
            token_ids[:num_tokens],
            decoded(logprobs, self._tokenizer) if logprobs else (),
            decoded(output.prompt_logprobs, self._tokenizer) if output.prompt_logprobs else (),
            prompt_index=self._prompt_index,
            timings=output.timings,
        )

    def _read(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]
    ) -> tuple[str, int]:
        """Return the text of the tokens up to the end of a stop string, and their number."""
        if not (self._has_stop_strings or self._markers or logprobs):  # faster than one by one
            return self._detokenizer.push(token_ids), len(token_ids)
        text = ""
        for count, (token_id, token_logprobs) in enumerate(
            zip_longest(token_ids, logprobs[: len(token_ids)]), start=1
        ):
            piece = self._text_of(token_id)
            if token_logprobs is not None:
                self._logprobs.add(token_logprobs, len(piece))
            text += self._stop_strings.push(piece)
            if self._stop_strings.matched is not None:
                return text, count
        return text, len(token_ids)

    def _text_of(self, token_id: int) -> str:
        marker = self._markers.get(token_id)
        if marker is None:
            return self._detokenizer.push((token_id,))
        return self._detokenizer.restart() + marker


def decoded(logprobs: Iterable[TokenLogprobs], tokenizer: Tokenizer) -> tuple[DecodedLogprob, ...]:
    """Return log probabilities with the bytes of their tokens."""
    token_bytes = tokenizer.token_bytes
    return tuple(
        DecodedLogprob(
            token_bytes(each.token_id),
            each.logprob,
            each.token_id,
            tuple(
                DecodedLogprob(token_bytes(token_id), logprob, token_id)
                for token_id, logprob in each.top
            ),
        )
        for each in logprobs
    )


@dataclass(slots=True)
class _PendingLogprobs:
    """Log probabilities of tokens whose text has not been delivered yet."""

    _pending: deque[tuple[int, TokenLogprobs]] = field(default_factory=deque)
    _num_read: int = 0  # characters of all tokens so far
    _num_delivered: int = 0

    def add(self, logprobs: TokenLogprobs, num_chars: int) -> None:
        """Add a token's log probabilities.

        Args:
            num_chars: Number of the token's characters; 0 if its character is incomplete.
        """
        self._pending.append((self._num_read, logprobs))
        self._num_read += num_chars

    def release(self, num_chars: int, *, is_last: bool) -> tuple[TokenLogprobs, ...]:
        """Return the log probabilities of tokens whose text begins in the next characters.

        Args:
            num_chars: Number of these characters.
            is_last: If True, all pending log probabilities are returned.
        """
        self._num_delivered += num_chars
        if not self._pending:
            return ()
        released = []
        while self._pending:
            start, logprobs = self._pending[0]
            is_empty_end = is_last and start == self._num_delivered == self._num_read
            if start >= self._num_delivered and not is_empty_end:
                break
            released.append(logprobs)
            self._pending.popleft()
        return tuple(released)
