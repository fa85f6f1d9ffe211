"""Offsets of tokens in a text."""

from hypothesis import given
from hypothesis import strategies as st

from service.text.text_offsets import TextOffsets, prompt_offsets
from tests.fakes.tokenizer import EOS, ByteTokenizer

TOKENIZER = ByteTokenizer()
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(text=texts)
def test_byte_token_has_the_offset_of_its_character(text: str) -> None:
    expected = [index for index, char in enumerate(text) for _ in char.encode()]
    ids = list(text.encode())
    assert prompt_offsets(text, ids, TOKENIZER) == expected
    assert TextOffsets(TOKENIZER, start=0, skip_special_tokens=True).push(ids) == expected


@given(prompt=texts, pieces=st.lists(texts, max_size=4))
def test_output_offsets_continue_after_the_prompt(prompt: str, pieces: list[str]) -> None:
    offsets = TextOffsets(TOKENIZER, start=len(prompt), skip_special_tokens=True)
    pushed = [offset for piece in pieces for offset in offsets.push(list(piece.encode()))]
    whole = prompt_offsets(prompt + "".join(pieces), [*"".join(pieces).encode()], TOKENIZER)
    assert len(pushed) == len(whole)
    assert pushed == sorted(pushed)
    assert all(len(prompt) <= offset for offset in pushed)


def test_token_without_text_has_the_next_offset() -> None:
    ids = [ord("a"), EOS, ord("b")]
    hidden = TextOffsets(TOKENIZER, start=0, skip_special_tokens=True)
    shown = TextOffsets(TOKENIZER, start=0, skip_special_tokens=False)
    assert hidden.push(ids) == [0, 1, 1]
    assert shown.push(ids) == [0, 1, 1 + len("<eos>")]
    assert prompt_offsets("ab", [EOS, *b"ab"], TOKENIZER) == [0, 0, 1]
