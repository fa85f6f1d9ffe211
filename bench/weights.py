"""Counts the weights of a checkpoint, without reading them.

The count gives the lower bounds of a step's time: the bytes that must be read from memory, and the
operations that must be done.
"""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import gguf

from bench.results import ModelFacts

_KV_BYTES = 2  # of a number in the KV cache, which is in 16 bits
_HEADER_LENGTH_BYTES = 8


def facts(name: str, title: str, checkpoint: Path) -> ModelFacts:
    """Return the figures of a checkpoint in bfloat16."""
    config = json.loads((checkpoint / "config.json").read_text())
    sizes = {name: prod(entry["shape"]) for name, entry in _entries(checkpoint)}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    num_layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    embedding = sizes["model.embed_tokens.weight"]
    head = sizes.get("lm_head.weight", embedding)
    return ModelFacts(
        name,
        title,
        num_parameters=sum(sizes.values()),
        num_layer_weights=sum(sizes.values()) - embedding - sizes.get("lm_head.weight", 0),
        num_head_weights=head,
        kv_bytes_per_token=2 * num_layers * kv_heads * head_dim * _KV_BYTES,
        attention_operations_per_position=4 * num_layers * heads * head_dim,
    )


def checkpoint_bytes(checkpoint: Path) -> int:
    """Return the bytes of the weights that a decode step reads: all but embeddings.

    If the embedding is also the head, it counts.
    """
    sizes: dict[str, int] = {}
    for name, entry in _entries(checkpoint):
        start, end = entry["data_offsets"]
        sizes[name] = end - start
    is_tied = "lm_head.weight" not in sizes
    return sum(sizes.values()) - (0 if is_tied else sizes["model.embed_tokens.weight"])


def gguf_bytes(file: Path) -> int:
    """Return the same for a GGUF file."""
    sizes = {tensor.name: int(tensor.n_bytes) for tensor in gguf.GGUFReader(file).tensors}
    is_tied = "output.weight" not in sizes
    return sum(sizes.values()) - (0 if is_tied else sizes["token_embd.weight"])


def _entries(checkpoint: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the headers' entry of every tensor, with its name."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(_HEADER_LENGTH_BYTES))
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        yield from ((name, entry) for name, entry in header.items() if name != "__metadata__")
