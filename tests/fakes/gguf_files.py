"""GGUF files of tiny models, written as llama.cpp's `convert_hf_to_gguf.py` writes them."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf.constants import MODEL_ARCH, GGMLQuantizationType
from gguf.quants import quantize
from tokenizers import pre_tokenizers

PERMUTED = {"llama", "mistral3", "smollm3", "granite"}  # rotated pairs are adjacent
GEMMA = {"gemma", "gemma2", "gemma3"}
_ARCHITECTURES = {arch: gguf.MODEL_ARCH_NAMES[arch] for arch in MODEL_ARCH}


def write_gguf(
    path: Path,
    architecture: str,
    keys: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[np.float32]],
    *,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    general: Mapping[str, Any] | None = None,
) -> Path:
    """Write the file and return its path.

    Names in `keys` get the prefix of the architecture, those in `tokenizer` get `tokenizer.ggml`.
    Matrices are stored as `kind`, or as in `kinds` by the tensor's name, and other tensors as
    float32. Keys whose value is None are left out.
    """
    writer = gguf.GGUFWriter(path, architecture)
    vocab = {} if tokenizer is None else {f"tokenizer.ggml.{k}": v for k, v in tokenizer.items()}
    own = {f"{architecture}.{name}": value for name, value in keys.items()}
    for name, value in {**(general or {}), **own, **vocab}.items():
        _add(writer, name, value)
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        else:
            own_kind = (kinds or {}).get(name, kind)
            stored = quantize(np.ascontiguousarray(values), own_kind)
            writer.add_tensor(name, stored, raw_dtype=own_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(name, value)
        case int():
            writer.add_uint32(name, value)
        case float():
            writer.add_float32(name, value)
        case str():
            writer.add_string(name, value)
        case _:
            writer.add_array(name, value)


def tensors_of(model: torch.nn.Module, architecture: str) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of a transformers model with the names and the layout of GGUF."""
    config: Any = model.config
    (arch,) = [key for key, name in _ARCHITECTURES.items() if name == architecture]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors = {}
    for full_name, parameter in _separated(model.state_dict()):
        if full_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        name, suffix = full_name.rsplit(".", 1)
        values = parameter
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        module = name.rsplit(".", 1)[-1]
        if architecture in PERMUTED and module in heads:
            values = _permuted(values, heads[module])
        if architecture in GEMMA and name.endswith("norm"):
            values = values + 1
        tensors[f"{names.get_name(name)}.{suffix}"] = values.numpy()
    return tensors


def _separated(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights as float32, with the gates of experts separated from the up projections."""
    for name, values in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = values.float().chunk(2, dim=1)
            yield name.replace("gate_up_proj", "gate_proj.weight"), gate
            yield name.replace("gate_up_proj", "up_proj.weight"), up
        else:
            suffix = ".weight" if name.endswith("experts.down_proj") else ""
            yield name + suffix, values.float()


def _permuted(values: torch.Tensor, num_heads: int) -> torch.Tensor:
    halves = values.reshape(num_heads, 2, values.shape[0] // num_heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def keys_of(config: Any) -> dict[str, Any]:
    """Return the keys that the converter writes for every model."""
    return {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }


def byte_level_vocab(size: int) -> dict[str, Any]:
    """Return a vocabulary like GPT-2's: two control tokens, all bytes, and padding."""
    tokens = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += [f"[PAD{index}]" for index in range(size - len(tokens))]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3, 3] + [1] * (size - 2),
        "merges": ["a b"],
        "bos_token_id": 0,
        "eos_token_id": 1,
    } | {"tokens": [*tokens[:-1], "ab"]}


def sentence_piece_vocab(size: int) -> dict[str, Any]:
    """Return a SentencePiece vocabulary: three control tokens, all bytes, letters, two merges."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["\u2581", *"abcdefgh", "ab", "\u2581ab"]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    tokens += [f"[PAD{index}]" for index in range(size - len(tokens))]
    kinds += [5] * (size - len(kinds))
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": kinds,
        "scores": [-float(index) for index in range(size)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
