"""One choice's answer: the engine's tokens in, finished text out."""

from dataclasses import dataclass

from service.text.detokenizer import Detokenizer
from service.text.stop_strings import StopStrings
from service.types import FinishReason, SamplingParams, Tokenizer, TokenOutput


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next piece of an answer.

    `num_tokens` were generated for it; their text may be held back for a later delta.
    `matched_stop` is the stop string or stop token of the request that ended the answer, if one of
    them did. `num_cached_tokens` of the prompt came from the prefix cache.
    """

    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    num_cached_tokens: int = 0


class AnswerText:
    """A sequence's outputs as text that holds no half character and no part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_strings = StopStrings(sampling.stop)
        self._has_stop_strings = bool(sampling.stop)
        self._stop_token_ids = sampling.stop_token_ids

    def push(self, output: TokenOutput) -> TextDelta:
        """The text that `output` makes certain. A delta with a finish reason is the last.

        A stop string ends the answer at the token that completes it, even if the engine had gone
        on. The token that stopped a sequence counts, but is no part of the text.
        """
        token_ids, finish_reason = output.token_ids, output.finish_reason
        is_stopped = finish_reason is FinishReason.STOP
        text, num_tokens = self._read(token_ids[:-1] if is_stopped else token_ids)
        matched_stop: str | int | None = self._stop_strings.matched
        if matched_stop is None and finish_reason is not None:
            num_tokens = len(token_ids)
            if is_stopped:  # what is cut off in the middle of a character leaves no half of it
                text += self._stop_strings.push(self._detokenizer.flush())
            text += self._stop_strings.flush()
            matched_stop = self._stop_strings.matched
            if matched_stop is None and is_stopped and token_ids[-1] in self._stop_token_ids:
                matched_stop = token_ids[-1]
        if self._stop_strings.matched is not None:
            finish_reason = FinishReason.STOP
        return TextDelta(text, num_tokens, finish_reason, matched_stop, output.num_cached_tokens)

    def _read(self, token_ids: tuple[int, ...]) -> tuple[str, int]:
        """The text of the tokens up to a stop string's last, and how many they are."""
        if not self._has_stop_strings:  # all at once is cheaper
            return self._detokenizer.push(token_ids), len(token_ids)
        text = ""
        for count, token_id in enumerate(token_ids, start=1):
            text += self._stop_strings.push(self._detokenizer.push((token_id,)))
            if self._stop_strings.matched is not None:
                return text, count
        return text, len(token_ids)
