"""Writes the tokenizer that a GGUF file describes as the files of a checkpoint.

A GGUF file contains a vocabulary. For a byte-level vocabulary it also contains the merges, and the
name of the rule by which text is split before merging. The rules are those of llama.cpp's code.
"""

import json
import re
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE

from service.errors import ModelLoadError
from service.gguf.metadata import shortened

_BYTE_LEVEL, _SENTENCE_PIECE = "gpt2", "llama"
_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
_SPACE = "\u2581"  # the character that SentencePiece writes for a space

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The patterns that split text, by values of tokenizer.ggml.pre. In the tokenizers of _WHOLE_WORDS,
# a word that is a token becomes this token without merges, and the BOS token is added by default.
_WHOLE_WORDS = {
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1"), _LLAMA3_SPLIT),
    **dict.fromkeys(("pixtral", "midm-2.0", "lfm2", "jina-v5-nano"), _LLAMA3_SPLIT),
    "tekken": _TEKKEN_SPLIT,
}
_SPLITS = {
    **_WHOLE_WORDS,
    **dict.fromkeys(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), _LLAMA3_SPLIT),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN2_SPLIT),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), _GPT4O_SPLIT),
}
# Tokenizers that separate every digit first and then apply GPT-2's pattern.
_DIGITS_APART = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
# Tokenizers with GPT-2's pattern.
_GPT2 = {"default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"} | {
    "jina-v1-en", "jina-v2-code", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat",
    "roberta-bpe", "a.x-4.0", "mellum", "modern-bert", "exaone4",
}  # fmt: skip

_GEMMA = {"gemma", "gemma2", "gemma3"}
_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# Ids of SentencePiece's special tokens for files without these keys, as in llama.cpp.
_SENTENCE_PIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
_UNKNOWN_SPLIT = "default"  # for files without tokenizer.ggml.pre, from before May 2024
_TEMPLATE_NAME = re.compile(r"\w[\w-]{0,63}")
_END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")


_log = structlog.get_logger(__name__)


class GgufTokenizer:
    """The tokenizer in a GGUF file's metadata. Its keys begin with `tokenizer.`."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str, vocab_size: int) -> None:
        """Read and check the vocabulary.

        Args:
            metadata: The file's metadata.
            architecture: The model's `general.architecture`.
            vocab_size: Number of tokens in the model's embedding.

        Raises:
            ModelLoadError: A key is missing or invalid, or has a value that is not supported.
        """
        self._metadata = metadata
        self._architecture = architecture
        self._kind = self._value("model", str, None)
        if self._kind not in (_BYTE_LEVEL, _SENTENCE_PIECE):
            raise ModelLoadError(
                f"The tokenizer is of the kind {shortened(self._kind)} (tokenizer.ggml.model); "
                f"supported are {_BYTE_LEVEL!r} and {_SENTENCE_PIECE!r}."
            )
        self._pre = self._value("pre", str, _UNKNOWN_SPLIT)
        if self._kind == _BYTE_LEVEL and self._pre == _UNKNOWN_SPLIT:
            _log.warning("gguf_pre_tokenizer_missing", used="gpt-2")
        if self._kind == _BYTE_LEVEL and self._pre not in _SPLITS.keys() | _DIGITS_APART | _GPT2:
            raise ModelLoadError(
                f"The tokenizer splits text by the rule {shortened(self._pre)} "
                "(tokenizer.ggml.pre), which is not known."
            )
        self._tokens: list[str] = self._value("tokens", list, None)
        if len(self._tokens) > vocab_size:
            raise ModelLoadError(
                f"The tokenizer has {len(self._tokens)} tokens, but the model embeds {vocab_size}."
            )
        if not self._tokens or not all(type(token) is str for token in self._tokens):
            raise ModelLoadError("tokenizer.ggml.tokens is not a list of strings.")
        # Several tokens may be empty. They are never used. They get the same names as in llama.cpp.
        self._tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(self._tokens)]
        if len(set(self._tokens)) != len(self._tokens):
            raise ModelLoadError("The file is damaged: a token occurs twice in its vocabulary.")

    @property
    def end_token_ids(self) -> list[int]:
        """The ids of the tokens that end an output. Chat models often have one for the end of a
        turn (eot) and one for the end of a text (eos)."""
        ids = {self.token_id(name) for name in _END_TOKENS}
        return sorted(token_id for token_id in ids if token_id is not None)

    def token_id(self, name: str) -> int | None:
        """Return the token id in the key `name`; None if there is no such key."""
        default = _SENTENCE_PIECE_IDS.get(name) if self._kind == _SENTENCE_PIECE else None
        token_id = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if token_id is not None and (
            type(token_id) is not int or not 0 <= token_id < len(self._tokens)
        ):
            raise ModelLoadError(
                f"tokenizer.ggml.{name} is {shortened(token_id)}, but the tokenizer has only "
                f"{len(self._tokens)} tokens."
            )
        return token_id

    def write(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat templates.

        Raises:
            ModelLoadError: See the constructor.
        """
        backend = self._byte_level() if self._kind == _BYTE_LEVEL else self._sentence_piece()
        special = {
            name: self._tokens[token_id]
            for name, key in _SPECIAL_TOKENS.items()
            if (token_id := self.token_id(key)) is not None
        }
        self._add_tokens(backend, special)
        backend.post_processor = self._post_processor(special)
        backend.save(str(directory / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        self._write_templates(directory)

    def _write_templates(self, directory: Path) -> None:
        """Write the chat template, and others by their names, such as `tool_use`."""
        prefix = "tokenizer.chat_template"
        for key, template in self._metadata.items():
            path = directory / "chat_template.jinja"
            if key.startswith(f"{prefix}."):
                name = key.removeprefix(f"{prefix}.")
                if not _TEMPLATE_NAME.fullmatch(name):
                    raise ModelLoadError(
                        f"The file has a chat template with the invalid name {shortened(name)}."
                    )
                path = directory / "additional_chat_templates" / f"{name}.jinja"
            elif key != prefix:
                continue
            if type(template) is not str:
                raise ModelLoadError(f"{key} is not a string.")
            path.parent.mkdir(exist_ok=True)
            path.write_text(template, encoding="utf-8")

    def _byte_level(self) -> Tokenizer:
        model = _bpe(
            vocab=self._vocab(self._tokens),
            merges=self._merges(),
            continuing_subword_prefix="",
            end_of_word_suffix="",
            ignore_merges=self._pre in _WHOLE_WORDS,
        )
        backend = Tokenizer(model)
        backend.decoder = decoders.ByteLevel()
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = byte_level
        if self._pre in _DIGITS_APART:
            digits = pre_tokenizers.Digits(individual_digits=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
        elif self._pre in _SPLITS:
            split = pre_tokenizers.Split(Regex(_SPLITS[self._pre]), behavior="isolated")
            mapped = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, mapped])
        return backend

    def _sentence_piece(self) -> Tokenizer:
        if self._architecture in _GEMMA:
            return self._gemma()
        scores = self._list("scores", float)
        vocab = self._vocab(self._tokens)
        merges = self._merges() if self._has("merges") else implied_merges(vocab, scores)
        backend = Tokenizer(_bpe(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True))
        has_prefix = self._value("add_space_prefix", bool, True)
        if self._architecture == "phi3":
            prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
            backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(
                replacement=_SPACE, prepend_scheme="first" if has_prefix else "never", split=False
            )
        strip = [decoders.Strip(content=" ", left=1)] if has_prefix else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        return backend

    def _gemma(self) -> Tokenizer:
        """Return Gemma's tokenizer.

        In its tokens that are runs of spaces, each space becomes SentencePiece's character for a
        space. If the file has no merges, they are ranked by token id.
        """
        tokens = [_SPACE * len(t) if " " in t and not t.strip() else t for t in self._tokens]
        vocab = self._vocab(tokens)
        order = [-index for index in range(len(tokens))]
        merges = self._merges() if self._has("merges") else implied_merges(vocab, order)
        unknown = self.token_id("unknown_token_id")
        backend = Tokenizer(
            _bpe(
                vocab=vocab,
                merges=merges,
                fuse_unk=True,
                byte_fallback=True,
                unk_token=None if unknown is None else tokens[unknown],
            )
        )
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        backend.decoder = decoders.Sequence(
            [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        return backend

    def _add_tokens(self, backend: Tokenizer, special: Mapping[str, str]) -> None:
        """Add control tokens and user-defined tokens, which are never split in a text."""
        kinds = self._list("token_type", int) if self._has("token_type") else []
        by_kind: dict[int, list[str]] = {_CONTROL: [], _USER_DEFINED: []}
        for token, kind in zip(self._tokens, kinds, strict=False):
            if kind in by_kind and backend.token_to_id(token) is not None:
                by_kind[kind].append(token)
        control = dict.fromkeys([*by_kind[_CONTROL], *special.values()])
        user_defined = [token for token in by_kind[_USER_DEFINED] if token not in control]
        backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
        backend.add_tokens([AddedToken(token, normalized=False) for token in user_defined])
        if backend.get_vocab_size(with_added_tokens=True) != len(self._tokens):
            raise ModelLoadError(
                "The file is damaged: its special tokens are not in its vocabulary."
            )

    def _post_processor(self, special: Mapping[str, str]) -> processors.PostProcessor:
        """Return the post-processor that adds BOS and EOS tokens to a text."""
        begins = self._kind == _SENTENCE_PIECE or self._pre in _WHOLE_WORDS
        added = {
            "bos_token": self._value("add_bos_token", bool, begins),
            "eos_token": self._value("add_eos_token", bool, False),
        }
        bos, eos = (special.get(name) if is_added else None for name, is_added in added.items())
        first = [bos, "$A", eos]
        second = [f"{bos}:1" if bos else None, "$B:1", f"{eos}:1" if eos else None]
        return processors.TemplateProcessing(
            single=[piece for piece in first if piece],
            pair=[piece for piece in first + second if piece],
            special_tokens=[(text, self._tokens.index(text)) for text in {bos, eos} if text],
        )

    def _vocab(self, tokens: list[str]) -> dict[str, int]:
        return {token: token_id for token_id, token in enumerate(tokens)}

    def _merges(self) -> list[tuple[str, str]]:
        merges = self._list("merges", str, None)
        pairs = [merge.split(" ") for merge in merges]
        if any(len(pair) != 2 for pair in pairs):
            raise ModelLoadError("tokenizer.ggml.merges has an element that is not two tokens.")
        return [(first, second) for first, second in pairs]

    def _has(self, name: str) -> bool:
        return f"tokenizer.ggml.{name}" in self._metadata

    def _value(self, name: str, kind: type, default: Any) -> Any:
        value = self._metadata.get(f"tokenizer.ggml.{name}", default)
        if value is None:
            raise ModelLoadError(f"The file lacks the metadata key tokenizer.ggml.{name}.")
        if type(value) is not kind:
            raise ModelLoadError(f"tokenizer.ggml.{name} is of another type than {kind.__name__}.")
        return value

    def _list(self, name: str, kind: type, number: int | None = -1) -> list[Any]:
        """Return a list of `kind` with `number` elements: -1 for one per token, None for any."""
        values: list[Any] = self._value(name, list, None)
        number = len(self._tokens) if number == -1 else number
        if not all(type(value) is kind for value in values) or number not in (None, len(values)):
            raise ModelLoadError(
                f"tokenizer.ggml.{name} is not a list of {number or ''} {kind.__name__}."
            )
        return values


def _bpe(**options: Any) -> BPE:
    try:
        return BPE(**options)
    except Exception as error:  # the library raises no narrower type
        reason = shortened(str(error))
        raise ModelLoadError(f"Its merges and its vocabulary do not agree: {reason}") from error


def implied_merges(
    vocab: Mapping[str, int], scores: list[float] | list[int]
) -> list[tuple[str, str]]:
    """Return the merges of a SentencePiece vocabulary, best first: each split of a token into two.

    Args:
        vocab: Token ids by token.
        scores: The score of each token, in the order of `vocab`.
    """
    ids = array("q")  # ids of both parts; there may be half a million merges
    keys = array("d")  # the score of the token and the lengths of its parts
    for token, score in zip(vocab, scores, strict=True):
        pairs = []
        for i in range(1, len(token)):
            first, second = vocab.get(token[:i]), vocab.get(token[i:])
            if first is not None and second is not None:
                pairs.append((first, second, i))
        for first, second, i in sorted(pairs):
            ids.extend((first, second))
            keys.extend((-score, -i, i - len(token)))
    by_score, by_first, by_second = np.frombuffer(keys).reshape(-1, 3).T
    order = np.lexsort((by_second, by_first, by_score)).tolist() if keys else []
    tokens = list(vocab)
    return [(tokens[ids[2 * index]], tokens[ids[2 * index + 1]]) for index in order]
