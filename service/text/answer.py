"""One choice's answer: the engine's tokens in, finished text out."""

from collections.abc import Mapping
from dataclasses import dataclass

from service.text.detokenizer import Detokenizer
from service.text.stop_strings import StopStrings
from service.types import FinishReason, SamplingParams, Tokenizer, TokenOutput


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The next piece of a call. Its id and its name come with the first piece alone."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer.

    `num_tokens` were generated for it; their text may be held back for a later delta.
    `reasoning` is text too, of the thoughts before the answer, and `num_reasoning_tokens` are those
    of the whole answer so far that were spent on them.
    `matched_stop` is the stop string or stop token of the request that ended the answer, if one of
    them did. `num_cached_tokens` of the prompt came from the prefix cache.
    """

    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    num_cached_tokens: int = 0
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
        self._tokenizer = tokenizer
        self._markers = markers or {}
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(sampling.stop)
        self._stop_token_ids = sampling.stop_token_ids

    def push(self, output: TokenOutput) -> TextDelta:
        """The text that `output` makes certain. A delta with a finish reason is the last.

        A stop string ends the answer at the token that completes it, even if the engine had gone
        on. The token that stopped a sequence counts, but is no part of the text.
        """
        text = ""
        token_ids = output.token_ids
        is_stopped = output.finish_reason is FinishReason.STOP
        for count, token_id in enumerate(token_ids[:-1] if is_stopped else token_ids, start=1):
            text += self._stop_strings.push(self._text_of(token_id))
            if self._stop_strings.matched is not None:
                return TextDelta(text, count, FinishReason.STOP, self._stop_strings.matched)
        if output.finish_reason is None:
            return TextDelta(text, len(token_ids))
        if is_stopped:  # what is cut off in the middle of a character leaves no half of it
            text += self._stop_strings.push(self._detokenizer.flush())
        if self._stop_strings.matched is not None:
            return TextDelta(text, len(token_ids), FinishReason.STOP, self._stop_strings.matched)
        text += self._stop_strings.flush()
        last = token_ids[-1] if is_stopped and token_ids else None
        return TextDelta(
            text,
            len(token_ids),
            output.finish_reason,
            matched_stop=last if last in self._stop_token_ids else None,
        )

    def _text_of(self, token_id: int) -> str:
        marker = self._markers.get(token_id)
        if marker is None:
            return self._detokenizer.push(token_id)
        text = self._detokenizer.flush() + marker
        self._detokenizer = Detokenizer(self._tokenizer)
        return text
