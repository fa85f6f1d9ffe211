"""Offsets of tokens in a completion's text, in characters.

A token that begins inside a character has the offset of that character.
"""

from collections.abc import Sequence

from service.domain.model import Tokenizer


def prompt_offsets(text: str, token_ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Return the offset of each token of a prompt.

    The tokens may have more text than the prompt: a start token, or a space that SentencePiece puts
    before the first word.
    """
    data, position, num_chars, offsets = text.encode(), 0, 0, []
    for token_id in token_ids:
        token = tokenizer.token_bytes(token_id)
        if not data.startswith(token, position):
            token = token.removeprefix(b" ")
        offsets.append(_offset(num_chars, token))
        if data.startswith(token, position):
            position += len(token)
            num_chars += _num_begun(token)
    return offsets


class TextOffsets:
    """Offsets of the generated tokens of one sequence.

    A token that adds nothing to the text has the offset of the token after it.

    Args:
        start: Offset of the first generated character.
    """

    def __init__(self, tokenizer: Tokenizer, *, start: int, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._num_chars = start

    def push(self, token_ids: Sequence[int]) -> list[int]:
        """Return the offsets of the next tokens."""
        offsets = []
        for token_id in token_ids:
            token = self._tokenizer.token_bytes(token_id)
            offsets.append(_offset(self._num_chars, token))
            if not self._is_hidden(token_id):
                self._num_chars += _num_begun(token)
        return offsets

    def _is_hidden(self, token_id: int) -> bool:
        # The token is decoded twice in a row, because a single SentencePiece space also decodes to
        # nothing.
        pair = [token_id, token_id]
        return not self._tokenizer.decode(pair, skip_special_tokens=self._skips_special)


def _offset(num_chars: int, token: bytes) -> int:
    """Return the offset of a token before which `num_chars` characters have begun."""
    return max(0, num_chars - 1) if token and _continues(token[0]) else num_chars


def _num_begun(token: bytes) -> int:
    """Return the number of characters that begin in the token."""
    return sum(not _continues(byte) for byte in token)


def _continues(byte: int) -> bool:
    """Return True for a UTF-8 byte that continues a character."""
    return byte & 0xC0 == 0x80
