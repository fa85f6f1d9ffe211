"""The bytes of a single token, which can be parts of characters."""

import json
import re
from collections.abc import Iterator
from functools import cached_property

import tokenizers

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes it for a space


class TokenBytes:
    """Returns the bytes of each token. Joined for all tokens of a text, they are the text.

    Three kinds of vocabularies encode bytes. Byte-level ones (GPT-2, Llama 3, Qwen, SmolLM) write
    each byte as a character. SentencePiece writes `<0xE2>` if it has no better token, and spaces as
    a block character. In any other vocabulary, a token's bytes are its decoded text.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._added = {
            token_id: token.content.encode()
            for token_id, token in backend.get_added_tokens_decoder().items()
        }

    def __call__(self, token_id: int) -> bytes:
        """Return the bytes of a token; empty for an id outside the vocabulary."""
        if token_id in self._added:
            return self._added[token_id]
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        if "ByteLevel" in self._decoders:
            return b"".join(map(self._byte_level, token))
        if "ByteFallback" in self._decoders and (byte := _BYTE.fullmatch(token)):
            return bytes.fromhex(byte[1])
        if self._decoders & {"ByteFallback", "Metaspace"}:
            return token.replace(_SPACE, " ").encode()
        return self._backend.decode([token_id], skip_special_tokens=False).encode()

    @cached_property
    def _decoders(self) -> set[str]:
        """The types of the tokenizer's decoding steps."""
        decoder = self._backend.decoder
        if decoder is None:
            return set()
        # The library exposes the parameters of its objects only in this way.
        return set(_types(json.loads(decoder.__getstate__())))

    @staticmethod
    def _byte_level(char: str) -> bytes:
        return bytes([_BYTES[char]]) if char in _BYTES else char.encode()


def _types(decoder: dict[str, object]) -> Iterator[str]:
    yield str(decoder["type"])
    steps = decoder.get("decoders")
    for step in steps if isinstance(steps, list) else ():
        yield from _types(step)


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet: printable Latin-1 characters, and others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(rest)
    }


_BYTES = _byte_alphabet()
