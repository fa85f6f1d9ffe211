"""The inputs of pooling models, beside the tokenizers library's own truncation."""

from pathlib import Path
from typing import Literal

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from service.domain.pooling import TextPair, Truncation
from service.errors import ContextLengthExceeded, InvalidField
from service.pooling.tokenization import InputTokenizer
from tests.support.pooling_models import save_tokenizer, sentence


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(path)
    return path / "tokenizer.json"


def made(file: Path, max_tokens: int = 12) -> InputTokenizer:
    return InputTokenizer(file.read_text(), 100, max_tokens)


def test_text_has_special_tokens_unless_they_are_off(file: Path) -> None:
    [whole] = made(file).tokenized(("river house",), "f")
    [bare] = made(file).tokenized(("river house",), "f", add_special_tokens=False)
    assert (whole.token_ids[0], whole.token_ids[-1]) == (2, 3)
    assert list(whole.token_ids[1:-1]) == list(bare.token_ids)


def test_long_input_is_rejected_by_its_index(file: Path) -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        made(file).tokenized(("river", sentence(11)), "text_inputs.texts")
    assert caught.value.field == "text_inputs.texts[1]"
    assert (caught.value.prompt_tokens, caught.value.max_model_len) == (13, 12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncated_text_keeps_special_tokens(file: Path, side: Literal["left", "right"]) -> None:
    text = sentence(20)
    [bare] = made(file, 64).tokenized((text,), "f", add_special_tokens=False)
    [short] = made(file).tokenized((text,), "f", truncation=Truncation(side, 5))
    kept = bare.token_ids[-3:] if side == "left" else bare.token_ids[:3]
    assert list(short.token_ids) == [2, *kept, 3]


@given(
    lengths=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    most=st.integers(5, 64),
    side=st.sampled_from(("left", "right")),
)
def test_truncation_of_pairs_is_that_of_the_library(
    file: Path, lengths: tuple[int, int], most: int, side: Literal["left", "right"]
) -> None:
    pair = TextPair(sentence(lengths[0]), sentence(lengths[1], start=5))
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(most, strategy="longest_first", direction=side)
    expected = library.encode(pair.query, pair.document)
    [found] = made(file, 64).tokenized((pair,), "f", truncation=Truncation(side, most))
    assert list(found.token_ids) == expected.ids
    assert list(found.type_ids) == expected.type_ids


def test_document_is_shortened_before_the_pair(file: Path) -> None:
    pair = TextPair(sentence(3), sentence(9, start=5))
    [found] = made(file).tokenized((pair,), "pairs", max_tokens_per_document=2)
    assert len(found) == 3 + 3 + 2
    with pytest.raises(ContextLengthExceeded) as caught:
        made(file).tokenized((pair,), "pairs")
    assert caught.value.field == "pairs[0]"


@pytest.mark.parametrize("side", ["left", "right"])
def test_text_is_shortened_to_its_start_before_the_truncation(
    file: Path, side: Literal["left", "right"]
) -> None:
    [found] = made(file).tokenized(
        (sentence(30),),
        "f",
        truncation=Truncation(side),
        prompt="the old ",
        max_tokens_per_document=2,
    )
    [expected] = made(file).tokenized((f"the old {sentence(2)}",), "f")
    assert found == expected


def test_prompt_is_put_before_texts_and_may_be_left_out_of_pooling(file: Path) -> None:
    tokenizer = made(file)
    [found] = tokenizer.tokenized(("river",), "f", prompt="the old ", skips_prompt=True)
    [expected] = tokenizer.tokenized(("the old river",), "f")
    assert list(found.token_ids) == list(expected.token_ids)
    assert (found.num_skipped, expected.num_skipped) == (3, 0)


def test_token_ids_are_used_as_they_are(file: Path) -> None:
    tokenizer = made(file)
    [found] = tokenizer.tokenized(((5, 6),), "f")
    assert list(found.token_ids) == [5, 6]
    [short] = tokenizer.tokenized((tuple(range(20)),), "f", truncation=Truncation("left"))
    assert list(short.token_ids) == list(range(8, 20))
    with pytest.raises(InvalidField, match="100 is not one of the model's 100 ids") as caught:
        tokenizer.tokenized(((5,), (100,)), "f")
    assert caught.value.field == "f[1]"


def test_text_without_a_token_is_rejected(file: Path) -> None:
    with pytest.raises(InvalidField, match="no token") as caught:
        made(file).tokenized(("a", " "), "f", add_special_tokens=False)
    assert caught.value.field == "f[1]"


def test_text_is_made_lower_case_on_request(file: Path) -> None:
    json = (
        file.read_text()
        .replace('"lowercase":true', '"lowercase":false')
        .replace('"lowercase": true', '"lowercase": false')
    )
    [exact] = InputTokenizer(json, 100, 12).tokenized(("RIVER",), "f")
    [lower] = InputTokenizer(json, 100, 12, lowercases=True).tokenized(("RIVER",), "f")
    [expected] = made(file).tokenized(("river",), "f")
    assert list(lower.token_ids) == list(expected.token_ids) != list(exact.token_ids)
