"""What single tokens stand for."""

import pytest

from service.text.token_bytes import TokenBytes
from tests.service.text.conftest import KINDS, TEXTS, LibraryTokenizer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_the_bytes_of_a_texts_tokens_are_the_texts_own(kind: str, text: str) -> None:
    backend = KINDS[kind]()
    token_bytes = TokenBytes(backend)
    ids = backend.encode(text, add_special_tokens=False).ids
    whole = b"".join(map(token_bytes, ids))
    # SentencePiece puts a space before a text, which its decoder takes away again.
    assert whole.decode().removeprefix(" ") == text.removeprefix(" ")


def test_every_single_byte_has_its_token() -> None:
    token_bytes = TokenBytes(KINDS["byte_level"]())
    ids = range(KINDS["byte_level"]().get_vocab_size())
    assert {bytes((byte,)) for byte in range(256)} <= set(map(token_bytes, ids))
    token_bytes = TokenBytes(KINDS["byte_fallback"]())
    assert [token_bytes(3 + byte) for byte in range(256)] == [bytes((b,)) for b in range(256)]


def test_half_a_character_is_told_in_bytes() -> None:
    tokenizer = LibraryTokenizer(KINDS["byte_level"]())
    ids = tokenizer.encode("😀", add_special_tokens=False)
    assert len(ids) > 1
    assert b"".join(map(tokenizer.token_bytes, ids)) == "😀".encode()


def test_a_special_token_has_its_name_and_an_unknown_id_has_nothing() -> None:
    token_bytes = TokenBytes(KINDS["byte_level"]())
    assert token_bytes(0) == b"<|im_start|>"
    assert token_bytes(10_000) == b""
