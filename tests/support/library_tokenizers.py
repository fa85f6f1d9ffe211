"""Small tokenizers of the three kinds that differ in decoding, from the tokenizers library."""

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from service.domain.chat import PromptOptions
from service.text.token_bytes import TokenBytes

TEXTS = (
    "Hello, world! It's 2026 and the café is open: 12345 guests.",
    "你好世界。日本語のテキスト",
    "😀👩\u200d👩\u200d👧\u200d👦🇫🇷 e\u0301 A  B   C\n\n\tD",
)


class LibraryTokenizer:
    """A `Tokenizer` that uses the tokenizers library directly. It has no chat template."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    @property
    def vocab_size(self) -> int:
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def max_token_chars(self) -> int:
        return max(map(len, self._backend.get_vocab()))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        return TokenBytes(self._backend)(token_id)

    def token(self, token_id: int) -> str:
        token = self._backend.id_to_token(token_id)
        assert token is not None
        return token

    def special_token_id(self, text: str) -> int | None:
        return None

    def render_chat(self, messages: list[dict[str, Any]], options: PromptOptions) -> str:
        raise NotImplementedError


def byte_level() -> tokenizers.Tokenizer:
    """Return a tokenizer like GPT-2's or Llama 3's: tokens are pieces of UTF-8."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def byte_fallback() -> tokenizers.Tokenizer:
    """Return a tokenizer like Llama 2's or Gemma's: SentencePiece with byte tokens."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁▁", "H", "e", "l", "o", "▁H", "▁He", "ll", "llo", "▁Hello", "é", "日", "��"]
    merges = [("▁", "▁"), ("▁", "H"), ("▁H", "e"), ("l", "l"), ("ll", "o"), ("▁He", "llo")]
    vocab = {token: index for index, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def metaspace() -> tokenizers.Tokenizer:
    """Return a tokenizer like T5's: tokens begin with their space."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>", "</s>"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "metaspace": metaspace}
