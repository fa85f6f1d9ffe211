"""Token ids to text, as they come."""

from collections.abc import Sequence

from service.domain.model import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# UTF-8 spends at most four bytes on a character, so an unfinished one is three bytes at most, which
# a tokenizer shows as one to three replacement characters.
_MAX_UNFINISHED = 3
# Long enough that most cuts in half succeed, short enough that decoding it at every token is cheap:
# about 6 us for 12 ids with a byte-level tokenizer.
_MAX_WINDOW = 16


class Detokenizer:
    """The text of one sequence, delivered as its tokens come.

    Special tokens leave no trace in it, unless they are not to be skipped.

    What `push` and `flush` return adds up to the tokenizer's `decode` of all the ids, and never
    holds half a character: bytes that a later token may complete are kept back. One case differs,
    on purpose. A tokenizer with byte fallback decodes a run of byte tokens all or nothing, so one
    bad byte in it would turn whole characters before it, already delivered, into replacement
    characters; they stay.

    `tokenizers.decoders.DecodeStream` does the same job but for three things: it has no flush, so
    the text of a sequence cut off inside a character is lost; it waits for as long as the text ends
    in a replacement character, so a model that emits invalid bytes blocks it and makes it slower
    with every token; and it needs the library's own tokenizer where our `Tokenizer` is enough.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []  # the window: as many of the last ids as later text depends on
        self._text = ""  # of the window
        self._num_sent = 0  # characters of it that have been delivered
        self._num_settled = 0  # ids of it whose text is whole and delivered

    def push(self, token_ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is now certain, possibly none.

        It does not matter to the whole how the ids are cut into pieces.
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
            # A special token: it can change nothing later either, and must not fill the window.
            # Twice, because a lone SentencePiece space also decodes to nothing.
            return ""
        if self._num_settled and not text.startswith(self._text[: self._num_sent]):
            # Byte fallback: an unfinished character spoils the whole run of bytes before it.
            ids = ids[self._num_settled :]
            text = self._decode(ids)
            self._num_sent = 0
        return self._settle(ids, text)

    def _settle(self, ids: list[int], text: str) -> str:
        """Make these the window; return what of its text is certain and has not been delivered."""
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
        """Return what was kept back, and forget all of it: what comes next is no part of it."""
        rest = self.flush()
        self._ids, self._text, self._num_sent, self._num_settled = [], "", 0, 0
        return rest

    def flush(self) -> str:
        """Return what was kept back. The sequence is over; nothing may be pushed after it."""
        rest = self._text[self._num_sent :]
        self._num_sent = len(self._text)
        return rest

    def _halve_window(self) -> None:
        """Forget the window's older half, if the text to come cannot depend on it.

        That is so if the newer half decodes to the end of the same text and leaves more characters
        than an unfinished one can have, so that no such one began before the cut. And with byte
        fallback, if the newer half does not merely want its last bytes to become whole again.
        Otherwise the next token moves the cut on.
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
    """How many characters at the end of `text` may yet become another one."""
    return min(_MAX_UNFINISHED, len(text) - len(text.rstrip(_REPLACEMENT)))
