"""Writes a checkpoint of a shape as a GGUF file in bfloat16, for llama.cpp's quantizer."""

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import torch
from safetensors import safe_open

from bench.shapes import Shape

_ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}
_SPECIAL = gguf.TokenType.CONTROL
_PLAIN = gguf.TokenType.NORMAL
# The name of the embedded model's pre-tokenizer in llama.cpp.
_PRE_TOKENIZER = "smollm"


def write(shape: Shape, source: Path, target: Path) -> None:
    """Write the GGUF file of a checkpoint of `bench.checkpoints.random`, one tensor after another.

    Projections and embeddings are in bfloat16, norms in float32.
    """
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[_ARCHITECTURES[shape.model_type]])
    _add_dimensions(writer, shape, json.loads((source / "config.json").read_text()))
    _add_tokenizer(writer, source)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[shape.model_type], shape.num_hidden_layers)
    for name, tensor in _tensors(source):
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if theirs is None:
            raise ValueError(f"GGUF has no name for the tensor {name}")
        if tensor.dim() == 1:
            numbers = tensor.float().numpy()
            writer.add_tensor_info(theirs, numbers.shape, numbers.dtype, numbers.nbytes)
        else:
            bits = tensor.view(torch.uint8).numpy()
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor_info(theirs, bits.shape, bits.dtype, bits.nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in _tensors(source):
        if tensor.dim() == 1:
            writer.write_tensor_data(tensor.float().numpy())
        else:
            writer.write_tensor_data(_rows(shape, name, tensor).view(torch.uint8).numpy())
    writer.close()


def _add_dimensions(writer: gguf.GGUFWriter, shape: Shape, config: dict[str, object]) -> None:
    writer.add_name(f"random {shape.model_type}")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(int(str(config["max_position_embeddings"])))
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(float(str(config["rms_norm_eps"])))
    writer.add_vocab_size(int(str(config["vocab_size"])))


def _add_tokenizer(writer: gguf.GGUFWriter, source: Path) -> None:
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    config = json.loads((source / "config.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary: dict[str, int] = tokenizer["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = [
        merge if isinstance(merge, str) else " ".join(merge)
        for merge in tokenizer["model"]["merges"]
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_PRE_TOKENIZER)
    writer.add_token_list(tokens)
    writer.add_token_types([_SPECIAL if vocabulary[t] in special else _PLAIN for t in tokens])
    writer.add_token_merges(merges)
    end = config["eos_token_id"]
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(end[0] if isinstance(end, list) else end)
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template((source / "chat_template.jinja").read_text())


def _tensors(source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # `weights` is not a dict
                yield name, weights.get_tensor(name)


def _rows(shape: Shape, name: str, weight: torch.Tensor) -> torch.Tensor:
    """Return the weight with its rows in the order of GGUF.

    For Llama, llama.cpp rotates neighbours, and transformers the two halves of a head. So the rows
    of queries and keys are reordered.
    """
    if shape.model_type != "llama" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return weight
    halves = weight.reshape(-1, 2, shape.head_dim // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)
