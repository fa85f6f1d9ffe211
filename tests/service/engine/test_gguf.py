"""Models in GGUF files, compared with their weights in floating point."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from service.engine.load import EngineOptions, load_model
from service.engine.quantized_checkpoint import read_quantized_weights
from service.engine.stored_weights import open_weights
from service.errors import ModelLoadError
from service.gguf.convert import link
from service.gguf.index import LINK
from tests.fakes.gguf_files import byte_level_vocab, keys_of, tensors_of, write_gguf
from tests.service.engine.logits import logprobs_of
from tests.service.engine.models import reference_logprobs

TOKENS = (5, 17, 3, 96, 40, 8, 22, 61, 5)
VOCAB = 320
Q4_0, Q4_1, Q5_1, Q8_0 = (GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_1", "Q8_0"))
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
# For each family: the architecture of its file, and the fields of its config.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases, tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "gemma": ("gemma", {"head_dim": 16}),
    "olmo2, with the transformers backend": ("olmo2", {}),
}


def write(
    directory: Path,
    family: str,
    kind: GGMLQuantizationType,
    kinds: dict[str, GGMLQuantizationType],
) -> Path:
    """Write a GGUF file of a tiny model, and return the directory of its link."""
    architecture, fields = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SIZES | fields))
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    path = write_gguf(
        directory / "model.gguf",
        architecture,
        keys_of(config) | {"rope.dimension_count": 16},
        tensors_of(model, architecture),
        kind=kind,
        kinds=kinds,
        tokenizer=byte_level_vocab(VOCAB),
    )
    link(path, directory / "link", {})
    return directory / "link"


def dequantized(path: Path, directory: Path) -> Path:
    """Write a checkpoint in float32 with the weights of the linked file in `path`."""
    directory.mkdir()
    weights = open_weights(path, torch.device("cpu"), read_quantized_weights(path))
    floats = {name: weights.read(name).float() for name in weights.names}
    weights.close()
    save_file(floats, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_bytes()) | {"dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_float32_are_those_of_the_dequantized_weights(
    family: str, tmp_path: Path
) -> None:
    path = write(tmp_path, family, Q4_1, {"blk.1.attn_v.weight": Q8_0})
    expected = reference_logprobs(dequantized(path, tmp_path / "floats"))(TOKENS)
    options = EngineOptions(path, device="cpu", dtype="float32")
    torch.testing.assert_close(logprobs_of(options, TOKENS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "llama with biases, tied", "gemma"])
@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q5_1, Q8_0])
def test_weights_in_groups_are_kept_by_default(
    family: str, kind: GGMLQuantizationType, tmp_path: Path
) -> None:
    kinds = {"blk.1.attn_v.weight": Q8_0, "blk.2.ffn_up.weight": GGMLQuantizationType.F16}
    path = write(tmp_path, family, kind, kinds)
    options = EngineOptions(path, device="cpu", check_token_ids=TOKENS)
    loaded = load_model(options)
    assert loaded.description["quantization"] == kind.name
    assert loaded.quantization_loss is None
    expected = reference_logprobs(dequantized(path, tmp_path / "floats"))(TOKENS)
    found = logprobs_of(options, TOKENS)
    # Only activations and keys and values are rounded.
    assert (found - expected).square().mean().sqrt() < 0.2


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_weights_in_floating_point_are_quantized_to_int8(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, "llama", GGMLQuantizationType[kind], {})
    options = EngineOptions(path, device="cpu")
    assert load_model(options).description["quantization"] == "int8"


def test_file_that_was_replaced_by_a_shorter_one_names_the_tensor(tmp_path: Path) -> None:
    path = write(tmp_path, "llama", Q4_0, {})
    file = (path / LINK).resolve()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match=r"the tensor blk\.\d\.\S+\.weight is cut off"):
        load_model(EngineOptions(path, device="cpu"))


@pytest.mark.parametrize("content", ["", "[]", '{"a": {}}', '{"a": {"shape": 1}}'])
def test_index_that_is_damaged_is_rejected(content: str, tmp_path: Path) -> None:
    path = write(tmp_path, "llama", Q4_0, {})
    (path / "gguf_index.json").write_text(content)
    with pytest.raises(ModelLoadError, match=r"gguf_index\.json is not an index"):
        read_quantized_weights(path)
