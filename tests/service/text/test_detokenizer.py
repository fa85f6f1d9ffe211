from itertools import cycle, groupby

from hypothesis import given
from hypothesis import strategies as st

from service.text.detokenizer import Detokenizer
from tests.support.library_tokenizers import KINDS, TEXTS, LibraryTokenizer

BYTE_LEVEL, BYTE_FALLBACK, METASPACE = (LibraryTokenizer(build()) for build in KINDS.values())
FIRST_BYTE = 3  # the id of <0x00> in the byte-fallback tokenizer

pieces = st.lists(st.sampled_from(["Hello", " ", "é", "日", "你", "😀", "e\u0301", "\n", "x"]))


def detokenize(tokenizer: LibraryTokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push([i]) for i in ids), detokenizer.flush()]


def in_pieces(tokenizer: LibraryTokenizer, ids: list[int], sizes: list[int]) -> str:
    detokenizer, text, rest = Detokenizer(tokenizer), "", ids
    for size in cycle(sizes):
        text += detokenizer.push(rest[:size])
        rest = rest[size:]
        if not rest:
            return text + detokenizer.flush()
    raise AssertionError


def fallback_text(ids: list[int]) -> str:
    """Return the expected text: complete characters, then one replacement character per byte."""
    text = ""
    special = (0, 1, 2)
    runs = groupby((i for i in ids if i not in special), lambda i: i < FIRST_BYTE + 256)
    for is_bytes, run in runs:
        if not is_bytes:
            text += "".join(BYTE_FALLBACK.token(i) for i in run).replace("▁", " ")
            continue
        data = bytes(i - FIRST_BYTE for i in run)
        while char := next((char for n in (1, 2, 3, 4) if (char := _decoded(data[:n]))), ""):
            text += char
            data = data[len(char.encode()) :]
        text += "\ufffd" * len(data)
    return text.removeprefix(" ")


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""


@given(ids=st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 3), max_size=80))
def test_byte_level_pieces_add_up_to_the_decoded_text(ids: list[int]) -> None:
    assert "".join(detokenize(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids, skip_special_tokens=True)


@given(ids=st.lists(st.integers(0, METASPACE.vocab_size - 1), max_size=80))
def test_metaspace_pieces_add_up_to_the_decoded_text(ids: list[int]) -> None:
    assert "".join(detokenize(METASPACE, ids)) == METASPACE.decode(ids, skip_special_tokens=True)


def _starts_with_a_space_byte(ids: list[int]) -> bool:
    """Return True if the text starts with a space, which the tokenizer strips."""
    return next((i for i in ids if i >= FIRST_BYTE), 0) == FIRST_BYTE + 0x20


@given(
    ids=st.lists(st.integers(0, BYTE_FALLBACK.vocab_size - 1), max_size=80).filter(
        lambda ids: not _starts_with_a_space_byte(ids)
    )
)
def test_byte_fallback_keeps_complete_characters_before_an_invalid_byte(ids: list[int]) -> None:
    assert "".join(detokenize(BYTE_FALLBACK, ids)) == fallback_text(ids)


@given(ids=st.lists(st.sampled_from([0x9F, 0xE4, 0xBD, 0xA0]), min_size=17, max_size=80))
def test_byte_fallback_handles_a_long_run_of_bytes(ids: list[int]) -> None:
    ids = [FIRST_BYTE + byte for byte in ids]
    assert "".join(detokenize(BYTE_FALLBACK, ids)) == fallback_text(ids)


@given(pieces=pieces)
def test_encoded_text_is_restored_without_half_characters(
    tokenizer: LibraryTokenizer, pieces: list[str]
) -> None:
    ids = tokenizer.encode("".join(pieces), add_special_tokens=False)
    deltas = detokenize(tokenizer, ids)
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=True)
    assert "\ufffd" not in "".join(deltas)


@given(data=st.data(), sizes=st.lists(st.integers(1, 20), min_size=1))
def test_text_does_not_depend_on_how_ids_are_split(data: st.DataObject, sizes: list[int]) -> None:
    tokenizer = data.draw(st.sampled_from([BYTE_LEVEL, BYTE_FALLBACK, METASPACE]))
    text = tokenizer.encode("".join(data.draw(pieces)), add_special_tokens=False)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    where = data.draw(st.integers(0, len(text)))
    ids = [*text[:where], *ids, *text[where:]]
    assert in_pieces(tokenizer, ids, sizes) == "".join(detokenize(tokenizer, ids))


def test_flush_completes_the_text_after_every_prefix() -> None:
    ids = BYTE_LEVEL.encode("".join(TEXTS), add_special_tokens=False)
    for end in range(len(ids)):
        whole = BYTE_LEVEL.decode(ids[:end], skip_special_tokens=True)
        assert "".join(detokenize(BYTE_LEVEL, ids[:end])) == whole
    ids = BYTE_FALLBACK.encode("".join(TEXTS), add_special_tokens=False)
    for end in range(len(ids)):
        assert "".join(detokenize(BYTE_FALLBACK, ids[:end])) == fallback_text(ids[:end])


def test_character_is_returned_with_its_last_byte() -> None:
    ids = [FIRST_BYTE + byte for byte in "😀".encode()]
    assert detokenize(BYTE_FALLBACK, ids) == ["", "", "", "😀", ""]
    ids = BYTE_LEVEL.encode("😀", add_special_tokens=False)
    assert len(ids) > 1
    assert detokenize(BYTE_LEVEL, ids) == [*[""] * (len(ids) - 1), "😀", ""]


def test_text_before_an_unfinished_character_is_returned_at_once() -> None:
    ids = [BYTE_LEVEL.encode(text, add_special_tokens=False)[0] for text in ("a", "é", "b")]
    half = BYTE_LEVEL.encode("😀", add_special_tokens=False)[:1]
    assert detokenize(BYTE_LEVEL, [*ids, *half, ids[0]])[-2] == "\ufffda"


def test_special_tokens_have_no_text(tokenizer: LibraryTokenizer) -> None:
    ids = tokenizer.encode("你 Hello", add_special_tokens=False)
    special = 1
    spaced = [special, *(part for i in ids for part in (i, special))]
    assert "".join(detokenize(tokenizer, spaced)) == "".join(detokenize(tokenizer, ids))


class CountingTokenizer(LibraryTokenizer):
    """A tokenizer that counts decoded ids, since this cost does not depend on the machine."""

    num_decoded = 0

    def decode(self, token_ids, *, skip_special_tokens):  # type: ignore[no-untyped-def]
        self.num_decoded += len(token_ids)
        return super().decode(token_ids, skip_special_tokens=skip_special_tokens)


def test_cost_of_a_token_does_not_depend_on_the_length() -> None:
    for build in KINDS.values():
        tokenizer = CountingTokenizer(build())
        ids = tokenizer.encode("".join(TEXTS) * 20, add_special_tokens=False)
        bad_bytes = [FIRST_BYTE + 0x9F] * 3000
        unfinished = [FIRST_BYTE + byte for byte in (0x9F, *(0xE4, 0xBD, 0xA0) * 1000)]
        for sequence in (ids, [1] * 3000, [ids[0]] * 3000, bad_bytes, unfinished):
            tokenizer.num_decoded = 0
            detokenize(tokenizer, sequence)
            assert tokenizer.num_decoded < 40 * len(sequence)
