"""Incremental detokenization: token ids to text."""

from collections.abc import Sequence

from service.domain.model import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character in UTF-8 has at most four bytes, so an unfinished one has at most three. A tokenizer
# decodes these bytes to one to three replacement characters.
_MAX_UNFINISHED = 3
# Maximum number of ids in the window. At this size the window can usually be cut in half, and
# decoding it at every token takes little time: about 6 us for 12 ids with a byte-level tokenizer.
_MAX_WINDOW = 16


class Detokenizer:
    """Converts the token ids of one sequence to text as they arrive.

    Special tokens have no text, unless `skip_special_tokens` is False.

    The texts that `push` and `flush` return add up to the tokenizer's `decode` of all ids. They
    never contain half a character: bytes that a later token may complete are held back. There is
    one exception. If a run of byte tokens has one invalid byte, a tokenizer with byte fallback
    decodes the whole run to replacement characters. Here, characters of the run that have already
    been returned remain.

    `tokenizers.decoders.DecodeStream` is not used for three reasons. It has no flush, so text that
    ends inside a character is lost. It waits while the text ends in a replacement character, so a
    model that emits invalid bytes blocks it and makes it slower with every token. It needs the
    library's own tokenizer instead of our `Tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []  # the window: the last ids, on which later text depends
        self._text = ""  # the text of the window
        self._num_sent = 0  # characters of the window that have been returned
        self._num_settled = 0  # ids of the window whose text is complete and returned

    def push(self, token_ids: Sequence[int]) -> str:
        """Add ids. Return the text that later ids cannot change; it can be empty.

        The total text does not depend on how the ids are split into calls.
        """
        if len(token_ids) > 1:
            ids = [*self._ids, *token_ids]
            text = self._decode(ids)
            sent = self._text[: self._num_sent]
            if _REPLACEMENT not in text and text != sent and text.startswith(sent):
                return self._settle(ids, text)
        return "".join(map(self._push_one, token_ids))

    def _push_one(self, token_id: int) -> str:
        ids = [*self._ids, token_id]
        text = self._decode(ids)
        if text == self._text and not self._decode([token_id, token_id]):
            # A special token. It does not affect later text, and must not fill the window. It is
            # decoded twice because a single SentencePiece space also decodes to nothing.
            return ""
        if self._num_settled and not text.startswith(self._text[: self._num_sent]):
            # Byte fallback: an unfinished character invalidates the run of bytes before it.
            ids = ids[self._num_settled :]
            text = self._decode(ids)
            self._num_sent = 0
        return self._settle(ids, text)

    def _settle(self, ids: list[int], text: str) -> str:
        """Set the window. Return its new text that later ids cannot change."""
        self._ids, self._text = ids, text
        num_ready = max(self._num_sent, len(text) - _num_unfinished(text))
        ready = text[self._num_sent : num_ready]
        self._num_sent = num_ready
        if num_ready == len(text):
            self._num_settled = len(ids)
        if len(ids) > _MAX_WINDOW:
            self._halve_window()
        return ready

    def restart(self) -> str:
        """Return the text that was held back, and start with an empty window."""
        rest = self.flush()
        self._ids, self._text, self._num_sent, self._num_settled = [], "", 0, 0
        return rest

    def flush(self) -> str:
        """Return the text that was held back, at the sequence's end. Do not `push` after it."""
        rest = self._text[self._num_sent :]
        self._num_sent = len(self._text)
        return rest

    def _halve_window(self) -> None:
        """Drop the older half of the window, if later text cannot depend on it.

        Two conditions ensure this. First, the newer half decodes to the end of the same text and is
        longer than an unfinished character, so no unfinished character began before the cut.
        Second, with byte fallback, the newer half does not change without its last bytes. If a
        condition is not met, the cut is tried again at the next token.
        """
        num_cut = len(self._ids) // 2
        ids = self._ids[num_cut:]
        text = self._decode(ids)
        if len(text) <= _MAX_UNFINISHED or not self._text.endswith(text):
            return
        for num_last in range(1, _MAX_UNFINISHED + 1):
            if not text.startswith(self._decode(ids[:-num_last]).rstrip(_REPLACEMENT)):
                return
        self._num_sent -= len(self._text) - len(text)
        self._num_settled = max(0, self._num_settled - num_cut)
        self._ids, self._text = ids, text

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)


def _num_unfinished(text: str) -> int:
    """Return the number of characters at the end of `text` that a later token may change."""
    return min(_MAX_UNFINISHED, len(text) - len(text.rstrip(_REPLACEMENT)))
