"""Writes the configs and the tokenizer of a GGUF file, and its weights or a link to them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.errors import ModelLoadError
from service.gguf.architectures import ARCHITECTURES
from service.gguf.file import GgufFile, open_gguf
from service.gguf.header import Header, TensorInfo
from service.gguf.index import write_index
from service.gguf.metadata import Metadata, shortened
from service.gguf.modules import EMBEDDING, Sizes, Weight
from service.gguf.tokenizer import GgufTokenizer
from service.gguf.weights import indexed, pair_up, write_weights


def convert(path: Path, directory: Path, generation: Mapping[str, Any]) -> None:
    """Write the model of the GGUF file `path` into the new directory `directory`.

    The weights are dequantized, for engines that do not read GGUF files. If the file has metadata
    or tensors that are not converted, it is rejected.

    Args:
        generation: Additional fields for generation_config.json.

    Raises:
        ModelLoadError: The file is damaged or not supported. The message is one line.
        OSError: A file cannot be read or written.
    """
    with open_gguf(path) as file:
        pairs = _write_description(file, directory, generation)
        write_weights(directory / "model.safetensors", file, pairs)


def link(path: Path, directory: Path, generation: Mapping[str, Any]) -> None:
    """Do the same as `convert`, but leave the weights in the file.

    The directory gets a link to the file, and the index of its tensors (`index.py`). `path` must be
    absolute.

    Raises:
        ModelLoadError, OSError: As `convert`.
    """
    with open_gguf(path) as file:
        pairs = _write_description(file, directory, generation)
        write_index(directory, path, indexed(pairs))


def header_digest(path: Path) -> str:
    """Return a hash of the part of the GGUF file `path` on which the result of `link` depends.

    That part is everything except the values of matrices. The hash also contains the file's own
    path, because the link does.

    Raises:
        ModelLoadError: The file is damaged.
        OSError: The file cannot be read.
    """
    with open_gguf(path) as file:
        digest = hashlib.sha256(repr(path.resolve()).encode())
        digest.update(file.read(0, file.header.num_bytes))
        for tensor in file.header.tensors.values():
            if len(tensor.shape) == 1:
                digest.update(file.read(tensor.offset, tensor.num_bytes))
        return digest.hexdigest()


def _write_description(
    file: GgufFile, directory: Path, generation: Mapping[str, Any]
) -> list[tuple[TensorInfo, Weight]]:
    """Write the configs and the tokenizer, and return the tensors that the model uses."""
    name = _architecture(file.header)
    architecture = ARCHITECTURES[name]
    metadata = Metadata(file.header.metadata, name)
    sizes = _sizes(metadata, file.header, has_experts=architecture.has_experts)
    config = architecture.config(metadata, file, sizes)
    metadata.check_all_read()
    weights = architecture.weights(config, sizes)
    pairs = pair_up(file.header.tensors, weights, architecture.harmless)
    tokenizer = GgufTokenizer(file.header.metadata, name, sizes.vocab)
    token_ids = {
        "bos_token_id": tokenizer.token_id("bos_token_id"),
        "eos_token_id": tokenizer.end_token_ids or None,
        "pad_token_id": tokenizer.token_id("padding_token_id"),
    }
    directory.mkdir()
    tokenizer.write(directory)
    _write_json(directory / "config.json", config | token_ids)
    _write_json(directory / "generation_config.json", token_ids | dict(generation))
    return pairs


def _architecture(header: Header) -> str:
    """Return the file's architecture, which is a key of `ARCHITECTURES`."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model":
        raise ModelLoadError(f"The file is not a model: its general.type is {shortened(kind)}.")
    parts = header.metadata.get("split.count", 0)
    if type(parts) is int and parts > 1:
        raise ModelLoadError(
            f"The file is one of {parts} parts of a model. Merge them with llama-gguf-split "
            "--merge."
        )
    name = header.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelLoadError(
            f"The architecture {shortened(name)} is not supported. Supported are "
            f"{', '.join(ARCHITECTURES)}."
        )
    return name


def _sizes(metadata: Metadata, header: Header, *, has_experts: bool) -> Sizes:
    embedding = header.tensors.get(EMBEDDING)
    if embedding is None:
        raise ModelLoadError(f"The file lacks the tensor {EMBEDDING}.")
    vocab, hidden = embedding.shape[0], metadata.integer("embedding_length")
    metadata.require("vocab_size", vocab)
    heads = metadata.integer("attention.head_count")
    kv_heads = metadata.integer("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise ModelLoadError(
            f"The model has {heads} attention heads, which do not divide into groups for its "
            f"{kv_heads} key and value heads."
        )
    head_dim = metadata.integer("attention.key_length", max(1, hidden // heads))
    if head_dim % 2:
        raise ModelLoadError(f"The model's attention heads have an odd width of {head_dim}.")
    metadata.require("attention.value_length", head_dim)
    metadata.require("attention.causal", True)
    metadata.value("tensor_data_layout")  # it describes the original checkpoint
    metadata.value("attention.layer_norm_epsilon")  # no architecture here has such norms
    layers = metadata.integer("block_count")
    if layers > len(header.tensors):
        raise ModelLoadError(
            f"The file claims {layers} layers, but has {len(header.tensors)} tensors in all."
        )
    return Sizes(
        vocab=vocab,
        hidden=hidden,
        mlp=metadata.integer("feed_forward_length"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        context=metadata.integer("context_length"),
        experts=metadata.integer("expert_count") if has_experts else 0,
        expert_mlp=metadata.integer("expert_feed_forward_length") if has_experts else 0,
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
