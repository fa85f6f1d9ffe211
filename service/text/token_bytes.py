"""What a single token stands for, in bytes: half a character is no text, so decoding cannot tell.

Two kinds of vocabulary are in use. Byte-level ones (GPT-2's, and most since) write every byte as a
printable character; SentencePiece's write a space as U+2581 and single bytes as `<0x0A>`.
"""

import re
from functools import cache

import tokenizers

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenBytes:
    """The bytes of each token of a vocabulary."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        decoder = backend.decoder  # whose pickled state is its JSON
        self._is_byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._added = {
            token_id: token.content.encode()
            for token_id, token in backend.get_added_tokens_decoder().items()
        }

    def __call__(self, token_id: int) -> bytes:
        """The token's bytes; none for an id outside the vocabulary."""
        added = self._added.get(token_id)
        if added is not None:
            return added
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if self._is_byte_level:
            byte_of = _byte_of_character()
            return b"".join(
                bytes((byte_of[char],)) if char in byte_of else char.encode() for char in token
            )
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes((int(match[1], 16),))
        return token.replace(_SPACE, " ").encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest follows from U+0100 on.

    https://github.com/openai/gpt-2/blob/master/src/encoder.py, `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }
