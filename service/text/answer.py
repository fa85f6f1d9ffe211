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
            text += self._stop_strings.push(self._detokenizer.push(token_id))
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
