"""Where in a completion's text its tokens begin, in characters.

A token that begins inside a character has the offset of that character.
"""

from collections.abc import Sequence

from service.domain.model import Tokenizer


def prompt_offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Of a prompt. Its tokens may have more than its text: a start token, a space that
    SentencePiece puts before the first word.
    """
    data, place, num_chars, offsets = text.encode(), 0, 0, []
    for token_id in token_ids:
        token = tokenizer.token_bytes(token_id)
        if not data.startswith(token, place):
            token = token.removeprefix(b" ")
        offsets.append(_offset(num_chars, token))
        if data.startswith(token, place):
            place += len(token)
            num_chars += _num_begun(token)
    return offsets


class TextOffsets:
    """Of the tokens of one answer, which begins at character `start` of the text.

    A token that leaves no trace in the text stands where the one after it does.
    """

    def __init__(self, tokenizer: Tokenizer, *, start: int, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._num_chars = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """Of the tokens generated next."""
        offsets = []
        for token_id in token_ids:
            token = self._tokenizer.token_bytes(token_id)
            offsets.append(_offset(self._num_chars, token))
            if not self._is_hidden(token_id):
                self._num_chars += _num_begun(token)
        return offsets

    def _is_hidden(self, token_id: int) -> bool:
        # Twice, because a lone SentencePiece space also decodes to nothing.
        pair = [token_id, token_id]
        return not self._tokenizer.decode(pair, skip_special_tokens=self._skips_special)


def _offset(num_chars: int, token: bytes) -> int:
    """Where a token begins that `num_chars` have begun before; inside the last one, perhaps."""
    return max(0, num_chars - 1) if token and _continues(token[0]) else num_chars


def _num_begun(token: bytes) -> int:
    """How many characters begin in it."""
    return sum(not _continues(byte) for byte in token)


def _continues(byte: int) -> bool:
    """Whether a character of UTF-8 has begun before this byte of it."""
    return byte & 0xC0 == 0x80
