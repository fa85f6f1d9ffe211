"""Tiny checkpoints with random weights of models that do not generate."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

VOCAB_SIZE = 160
WORDS = (
    *("the", "a", "of", "river", "house", "bank", "water", "fish", "green"),
    *("old", "new", "road", "town", "hill", "boat", "stone", "light", "night"),
    *("day", "winter", "summer", "bread", "king", "child", "song", "wind", "snow"),
    *("field", "horse", "bird"),
)

_SHAPE: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
# What differs from that shape, by model_type.
_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "bert": {},
    "roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "mpnet": {"pad_token_id": 1},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None},
    "llama": {"num_key_value_heads": 2},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 5},
}
ENCODERS = ("bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert")
DECODERS = ("qwen3", "llama", "mistral")


def save_tokenizer(path: Path) -> None:
    """Save a tokenizer of words and letters, with BERT's special tokens."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *WORDS]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    backend = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    backend.save(str(path / "tokenizer.json"))
    names = ("pad", "unk", "cls", "sep")
    config: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in names}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 48}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    write(path / "tokenizer_config.json", config | {"model_input_names": inputs})


def save_encoder(path: Path, model_type: str = "bert", **fields: Any) -> Path:
    """Save a model without a head, and a tokenizer. Return its path."""
    return _save(path, AutoModel, model_type, fields)


def save_classifier(
    path: Path, model_type: str = "bert", num_labels: int = 3, **fields: Any
) -> Path:
    """Save a sequence classifier, and a tokenizer. Return its path."""
    fields = {"num_labels": num_labels, **fields}
    return _save(path, AutoModelForSequenceClassification, model_type, fields)


def add_modules(
    path: Path,
    pooling: Mapping[str, Any] | None = None,
    *,
    dense: Mapping[str, Any] | None = None,
    normalizes: bool = True,
    settings: Mapping[str, Any] | None = None,
    max_seq_length: int = 40,
) -> Path:
    """Add the files of sentence_transformers to a model. Return its path.

    Args:
        pooling: The config of the module Pooling.
        dense: The config of a module Dense after it; None for no such module.
        settings: config_sentence_transformers.json.
    """
    kinds = [
        "Transformer",
        "Pooling",
        *["Dense"] * (dense is not None),
        *["Normalize"] * normalizes,
    ]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds) if i)]
    modules = [
        {"idx": i, "name": str(i), "path": each, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, each) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(path / "modules.json", modules)
    write(
        path / "1_Pooling" / "config.json",
        {"word_embedding_dimension": 32, **(pooling or {"pooling_mode_mean_tokens": True})},
    )
    write(path / "sentence_bert_config.json", {"max_seq_length": max_seq_length})
    write(path / "config_sentence_transformers.json", settings or {})
    if dense is not None:
        config = {"in_features": 32, "out_features": 12, "bias": True, **dense}
        write(path / "2_Dense" / "config.json", config)
        torch.manual_seed(5)
        weights = {
            "linear.weight": torch.randn(config["out_features"], config["in_features"]),
            "linear.bias": torch.randn(config["out_features"]),
        }
        save_file(weights, path / "2_Dense" / "model.safetensors")
    return path


def sentence(length: int, start: int = 0) -> str:
    """Return a text of `length` words, each one token."""
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(length))


def write(path: Path, content: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _save(path: Path, kind: Any, model_type: str, fields: Mapping[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    save_tokenizer(path)
    torch.manual_seed(3)
    config: Any = AutoConfig.for_model(model_type, **{**_SHAPE, **_SHAPES[model_type], **fields})
    model = kind.from_config(config)
    for parameter in model.parameters():  # larger weights than at the start of a training
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path
