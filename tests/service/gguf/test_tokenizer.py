from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from transformers.tokenization_utils_base import generate_merges

from service.errors import ModelLoadError
from service.gguf.tokenizer import GgufTokenizer, implied_merges
from tests.fakes.gguf_files import byte_level_vocab, sentence_piece_vocab

SIZE = 320


def make(vocab: dict[str, Any], architecture: str = "llama", size: int = SIZE) -> GgufTokenizer:
    metadata = {f"tokenizer.ggml.{name}": value for name, value in vocab.items()}
    return GgufTokenizer(metadata, architecture, size)


def pieces(
    tokenizer: GgufTokenizer, directory: Path, text: str, special: bool = False
) -> list[str]:
    tokenizer.write(directory)
    backend = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    encoding = backend.encode(text, add_special_tokens=special)
    assert [backend.token_to_id(token) for token in encoding.tokens] == encoding.ids
    return list(encoding.tokens)


class TestByteLevel:
    @pytest.mark.parametrize(
        ("pre", "text", "expected"),
        [
            ("gpt-2", "ab  12", ["ab", "Ġ", "Ġ", "1", "2"]),
            ("smollm", "ab  12", ["ab", "Ġ", "Ġ", "1", "2"]),
            ("llama-bpe", "ab 1234", ["ab", "Ġ", "1", "2", "3", "4"]),
            ("qwen2", "<|end|>ab", ["<|end|>", "ab"]),
        ],
    )
    def test_text_is_split_by_the_files_rule(
        self, pre: str, text: str, expected: list[str], tmp_path: Path
    ) -> None:
        assert pieces(make(byte_level_vocab(SIZE) | {"pre": pre}), tmp_path, text) == expected

    @pytest.mark.parametrize("pre", ["default", None])
    def test_file_without_a_rule_is_warned_of(self, pre: str | None) -> None:
        vocab = {k: v for k, v in (byte_level_vocab(SIZE) | {"pre": pre}).items() if v is not None}
        with capture_logs() as logs:
            make(vocab)
        assert [log["event"] for log in logs] == ["gguf_pre_tokenizer_missing"]

    def test_unknown_rule_is_rejected(self) -> None:
        with pytest.raises(ModelLoadError, match=r"the rule 'unheard-of' \(tokenizer\.ggml\.pre\)"):
            make(byte_level_vocab(SIZE) | {"pre": "unheard-of"})

    @pytest.mark.parametrize(
        ("keys", "expected"),
        [
            ({}, ["a"]),
            ({"add_bos_token": True}, ["<|begin|>", "a"]),
            ({"add_bos_token": True, "add_eos_token": True}, ["<|begin|>", "a", "<|end|>"]),
            ({"pre": "llama-bpe"}, ["<|begin|>", "a"]),
            ({"pre": "llama-bpe", "add_bos_token": False}, ["a"]),
        ],
    )
    def test_bos_and_eos_are_added_as_the_file_specifies(
        self, keys: dict[str, Any], expected: list[str], tmp_path: Path
    ) -> None:
        assert pieces(make(byte_level_vocab(SIZE) | keys), tmp_path, "a", special=True) == expected

    def test_word_that_is_a_token_is_taken_whole_without_merges(self, tmp_path: Path) -> None:
        vocab = byte_level_vocab(SIZE)
        vocab["tokens"][-2] = "cde"
        assert pieces(make(vocab), tmp_path, "cde") == ["c", "d", "e"]
        assert pieces(make(vocab | {"pre": "llama-bpe"}), tmp_path, "cde") == ["cde"]

    def test_control_token_of_any_letters_keeps_its_id(self, tmp_path: Path) -> None:
        vocab = byte_level_vocab(SIZE)
        vocab["tokens"][1] = "<\uff5cUser\uff5c>"
        assert pieces(make(vocab), tmp_path, "<\uff5cUser\uff5c>a") == ["<\uff5cUser\uff5c>", "a"]


class TestSentencePiece:
    @pytest.mark.parametrize(
        ("architecture", "keys", "text", "expected"),
        [
            ("llama", {}, "ab a", ["\u2581ab", "\u2581", "a"]),
            ("llama", {"add_space_prefix": False}, "ab a", ["ab", "\u2581", "a"]),
            ("phi3", {}, "ab a", ["\u2581ab", "\u2581", "a"]),
            ("phi3", {"add_space_prefix": False}, "ab a", ["ab", "\u2581", "a"]),
            ("gemma3", {}, "ab a", ["ab", "\u2581", "a"]),
            ("llama", {}, "\u00e9", ["\u2581", "<0xC3>", "<0xA9>"]),
        ],
    )
    def test_text_is_split_as_the_architecture_does(
        self,
        architecture: str,
        keys: dict[str, Any],
        text: str,
        expected: list[str],
        tmp_path: Path,
    ) -> None:
        vocab = sentence_piece_vocab(SIZE) | keys
        assert pieces(make(vocab, architecture), tmp_path, text) == expected

    def test_ids_that_the_file_does_not_name_are_sentence_pieces(self) -> None:
        vocab = sentence_piece_vocab(SIZE)
        for name in ("bos_token_id", "eos_token_id", "unknown_token_id"):
            del vocab[name]
        tokenizer = make(vocab)
        assert (tokenizer.token_id("bos_token_id"), tokenizer.end_token_ids) == (1, [2])


@given(
    tokens=st.lists(st.text("ab\u2581", min_size=1, max_size=5), unique=True, max_size=30),
    scores=st.lists(st.integers(-3, 0), min_size=30, max_size=30),
)
def test_implied_merges_are_those_of_transformers(tokens: list[str], scores: list[int]) -> None:
    vocab = {token: index for index, token in enumerate(tokens)}
    scores = scores[: len(tokens)]
    expected = generate_merges(vocab, dict(zip(tokens, scores, strict=True)))
    assert implied_merges(vocab, scores) == expected


class TestInvalid:
    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"model": "rwkv"}, r"the kind 'rwkv' \(tokenizer\.ggml\.model\)"),
            ({"tokens": None}, r"lacks the metadata key tokenizer\.ggml\.tokens"),
            ({"tokens": ["a", "a"]}, r"a token occurs twice"),
            ({"tokens": [1, 2]}, r"tokens is not a list of strings"),
            ({"tokens": [str(i) for i in range(321)]}, r"321 tokens, but the model embeds 320"),
        ],
    )
    def test_vocabulary_is_rejected(self, keys: dict[str, Any], message: str) -> None:
        with pytest.raises(ModelLoadError, match=message):
            make(byte_level_vocab(SIZE) | keys)

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"merges": None}, r"lacks the metadata key tokenizer\.ggml\.merges"),
            ({"merges": ["a xyz"]}, r"merges and its vocabulary do not agree: .*xyz.* out of voc"),
            ({"merges": ["ab"]}, r"an element that is not two tokens"),
            ({"token_type": [1]}, r"token_type is not a list of 320 int"),
            ({"eos_token_id": 320}, r"eos_token_id is 320, but the tokenizer has only 320 tokens"),
            ({"add_bos_token": 1}, r"add_bos_token is of another type than bool"),
        ],
    )
    def test_rest_is_rejected(self, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(ModelLoadError, match=message):
            make(byte_level_vocab(SIZE) | keys).write(tmp_path)

    def test_several_empty_tokens_keep_their_ids(self, tmp_path: Path) -> None:
        vocab = byte_level_vocab(SIZE)
        vocab["tokens"][-3:-1] = ["", ""]
        assert pieces(make(vocab), tmp_path, "ab") == ["ab"]

    def test_named_chat_templates_are_kept(self, tmp_path: Path) -> None:
        templates = {"": "plain", ".tool_use": "tools"}
        vocab = {f"tokenizer.ggml.{k}": v for k, v in byte_level_vocab(SIZE).items()}
        keys = {f"tokenizer.chat_template{k}": v for k, v in templates.items()}
        GgufTokenizer(vocab | keys, "llama", SIZE).write(tmp_path)
        assert (tmp_path / "chat_template.jinja").read_text() == "plain"
        assert (tmp_path / "additional_chat_templates/tool_use.jinja").read_text() == "tools"

    @pytest.mark.parametrize("name", ["../x", "", "a/b", "a" * 65])
    def test_odd_name_of_a_chat_template_is_rejected(self, name: str, tmp_path: Path) -> None:
        vocab = {f"tokenizer.ggml.{k}": v for k, v in byte_level_vocab(SIZE).items()}
        vocab[f"tokenizer.chat_template.{name}"] = "x"
        with pytest.raises(ModelLoadError, match="a chat template with the invalid name"):
            GgufTokenizer(vocab, "llama", SIZE).write(tmp_path)

    def test_every_end_of_turn_token_is_an_end_token(self) -> None:
        vocab = byte_level_vocab(SIZE) | {"eot_token_id": 7, "eom_token_id": 5}
        assert make(vocab).end_token_ids == [1, 5, 7]
