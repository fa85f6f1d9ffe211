"""The bytes of single tokens."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from service.text.token_bytes import TokenBytes
from tests.support.library_tokenizers import TEXTS, LibraryTokenizer, byte_fallback, byte_level


@pytest.mark.parametrize("text", TEXTS)
def test_bytes_of_all_tokens_add_up_to_the_text(tokenizer: LibraryTokenizer, text: str) -> None:
    token_bytes = TokenBytes(tokenizer._backend)
    ids = tokenizer.encode(text, add_special_tokens=False)
    added = b"".join(map(token_bytes, ids)).decode(errors="replace")
    # SentencePiece adds a space before the first word, which its decoder removes.
    assert added.removeprefix(" ") == tokenizer.decode(ids, skip_special_tokens=False)


BYTE_LEVEL = byte_level()


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_byte_level_vocabulary_has_every_byte(text: str) -> None:
    ids = BYTE_LEVEL.encode(text).ids
    assert b"".join(map(TokenBytes(BYTE_LEVEL), ids)) == text.encode()


def test_token_can_be_a_part_of_a_character() -> None:
    backend = byte_fallback()
    token_bytes, ids = TokenBytes(backend), backend.get_vocab()
    assert token_bytes(ids["<0xE2>"]) == b"\xe2"
    assert token_bytes(ids["▁Hello"]) == b" Hello"


def test_special_token_has_the_bytes_of_its_text() -> None:
    assert TokenBytes(BYTE_LEVEL)(BYTE_LEVEL.get_vocab()["<|im_end|>"]) == b"<|im_end|>"


def test_ids_outside_the_vocabulary_have_no_bytes() -> None:
    assert TokenBytes(BYTE_LEVEL)(10_000) == b""


def test_other_vocabulary_uses_decoding() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}))
    assert TokenBytes(backend)(1) == b"play"
    backend.decoder = decoders.WordPiece()
    assert TokenBytes(backend)(1) == b"play"
