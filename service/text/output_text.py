"""One choice's answer: the engine's tokens in, finished text out."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.domain.model import Tokenizer
from service.domain.sampling import SamplingParams
from service.text.detokenizer import Detokenizer
from service.text.stop_strings import StopStrings


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The next piece of a call. Its id and its name come with the first piece alone."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer, of the choice `index`.

    `num_tokens` were generated for it, `token_ids`; their text may be held back for a later delta.
    `reasoning` is text too, of the thoughts before the answer, and `num_reasoning_tokens` are those
    of the whole answer so far that were spent on them. `calls` are pieces of calls of functions.
    `matched_stop` is the stop string or stop token of the request that ended the answer, if one of
    them did. `num_cached_tokens` of the prompt came from the prefix cache.

    `logprobs`, where they were asked for, are those of the tokens whose text begins in this delta:
    a token that ended the answer has none, nor have those of a stop string that is cut off.
    """

    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    num_cached_tokens: int = 0
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    calls: tuple[CallDelta, ...] = ()


class AnswerText:
    """A sequence's outputs as text that holds no half character and no part of a stop string."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        sampling: SamplingParams,
        markers: Mapping[int, str] | None = None,
    ) -> None:
        """`markers`: special tokens that do show in the text, as they are written, by their ids."""
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
        """The text that `output` makes certain. A delta with a finish reason is the last.

        A stop string ends the answer at the token that completes it, even if the engine had gone
        on. The token that stopped a sequence counts, but is no part of the text unless it was asked
        to be.
        """
        token_ids, finish_reason = output.token_ids, output.finish_reason
        is_stopped = finish_reason is FinishReason.STOP
        ends_in_stop = is_stopped and not self._includes_stop
        spoken = token_ids[:-1] if ends_in_stop else token_ids
        text, num_tokens = self._read(spoken, output.logprobs)
        matched_stop: str | int | None = self._stop_strings.matched
        if matched_stop is None and finish_reason is not None:
            num_tokens = len(token_ids)
            if is_stopped:  # what is cut off in the middle of a character leaves no half of it
                text += self._stop_strings.push(self._detokenizer.flush())
            text += self._stop_strings.flush()
            matched_stop = self._stop_strings.matched
            ended_by = token_ids[-1] if is_stopped and token_ids else None
            if matched_stop is None and ended_by in self._stop_token_ids:
                matched_stop = ended_by
        if self._stop_strings.matched is not None:
            finish_reason = FinishReason.STOP
        return TextDelta(
            text,
            num_tokens,
            finish_reason,
            matched_stop,
            output.num_cached_tokens,
            output.index,
            token_ids[:num_tokens],
            self._logprobs.release(len(text), is_last=finish_reason is not None),
            output.prompt_logprobs,
        )

    def _read(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]
    ) -> tuple[str, int]:
        """The text of the tokens up to a stop string's last, and how many they are."""
        if not (self._has_stop_strings or self._markers or logprobs):  # all at once is cheaper
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


@dataclass(slots=True)
class _PendingLogprobs:
    """Log probabilities of tokens, until their text is delivered."""

    _pending: deque[tuple[int, TokenLogprobs]] = field(default_factory=deque)
    _num_read: int = 0  # characters that tokens have made so far
    _num_delivered: int = 0

    def add(self, logprobs: TokenLogprobs, num_chars: int) -> None:
        """A token's; the text goes on by `num_chars`, none if its character is not complete."""
        self._pending.append((self._num_read, logprobs))
        self._num_read += num_chars

    def release(self, num_chars: int, *, is_last: bool) -> tuple[TokenLogprobs, ...]:
        """Those whose text begins in the next `num_chars`; at the end, those without text too."""
        self._num_delivered += num_chars
        released = []
        while self._pending:
            start, logprobs = self._pending[0]
            is_empty_end = is_last and start == self._num_delivered == self._num_read
            if start >= self._num_delivered and not is_empty_end:
                break
            released.append(logprobs)
            self._pending.popleft()
        return tuple(released)
