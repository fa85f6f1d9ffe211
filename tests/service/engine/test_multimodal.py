"""Multimodal checkpoints: for text, the language model by itself gives the whole model's output."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, GenerationConfig

from service.engine.load import EngineOptions, load_engine
from service.errors import ModelLoadError
from tests.service.engine.logits import logprobs_of
from tests.service.engine.models import CONFIGS, make_config
from tests.service.engine.quantized import METHODS, change_config, quantize_checkpoint

TOKENS = (5, 17, 3, 96, 40, 8, 22, 61, 5)

# transformers has no types for these.
_AutoModel: Any = AutoModelForImageTextToText
_GenerationConfig: Any = GenerationConfig

_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
_TIED = {"tie_word_embeddings": True}

# For each type of a whole model: its text model in `CONFIGS`, and the rest of its config.
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "gemma3",
        {
            "vision_config": _SIZES | {"model_type": "siglip_vision_model"},
            "mm_tokens_per_image": 4,
            "image_token_index": 90,
        },
    ),
    "mistral3": ("mistral", {"vision_config": _SIZES | {"model_type": "pixtral"}}),
    "llava": ("llama", {"vision_config": _SIZES | {"model_type": "clip_vision_model"}}),
    "llava_next": ("mistral", {"vision_config": _SIZES | {"model_type": "clip_vision_model"}}),
    "llava_onevision": ("qwen2", {"vision_config": _SIZES | {"model_type": "siglip_vision_model"}}),
    "idefics3": ("llama", {"vision_config": _SIZES, "scale_factor": 1}),
    "smolvlm": ("llama", {"vision_config": _SIZES, "scale_factor": 1}),
    "internvl": ("qwen2", {"vision_config": _SIZES | {"image_size": [8, 8], "patch_size": [4, 4]}}),
}


def save_whole(path: Path, name: str, **more: Any) -> Path:
    text, fields = WHOLES[name]
    model_type, text_fields = CONFIGS[text]
    special = {"image_token_id": 90, "image_token_index": 90}
    text_config = make_config(model_type, **text_fields).to_dict()
    config = make_config(name, text_config=text_config, **(special | fields | more))
    torch.manual_seed(0)
    model = _AutoModel.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.generation_config = _GenerationConfig()
    model.save_pretrained(path)
    return path


def options(path: Path) -> EngineOptions:
    return EngineOptions(
        path, device="cpu", dtype="float32", block_size=16, kv_cache_memory_bytes=2**24
    )


def expected(path: Path) -> torch.Tensor:
    model = _AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return torch.log_softmax(model(input_ids=torch.tensor([TOKENS])).logits[0].float(), dim=-1)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("name", WHOLES)
def test_language_model_by_itself_has_the_logits_of_the_whole(
    name: str, is_tied: bool, tmp_path: Path
) -> None:
    path = save_whole(tmp_path, name, tie_word_embeddings=is_tied)
    torch.testing.assert_close(
        logprobs_of(options(path), TOKENS), expected(path), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("own", ["language_model.model.", "model.language_model."])
def test_both_names_that_checkpoints_have_had_are_read(own: str, tmp_path: Path) -> None:
    path = save_whole(tmp_path / "a", "gemma3")
    reference = expected(path)
    weights = load_file(path / "model.safetensors")
    renamed = {}
    for name, tensor in weights.items():
        for prefix in ("language_model.model.", "model.language_model."):
            if name.startswith(prefix):
                renamed[own + name.removeprefix(prefix)] = tensor
    assert len(renamed) > 10
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    torch.testing.assert_close(logprobs_of(options(path), TOKENS), reference, atol=2e-4, rtol=1e-4)


def test_quantized_language_model_is_read_with_its_scales(tmp_path: Path) -> None:
    path = save_whole(tmp_path / "quantized", "mistral3")
    meant = Path(shutil.copytree(path, tmp_path / "meant"))
    description, quantize = METHODS["compressed-tensors fp8 dynamic"]
    quantize_checkpoint(path, quantize, meant)
    change_config(path, quantization_config=description)
    torch.testing.assert_close(
        logprobs_of(options(path), TOKENS), expected(meant), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "paligemma"}, "PaliGemma is not a causal language model"),
        ({"model_type": "qwen2_vl"}, "Qwen2VL is not a causal language model"),
        ({"model_type": "voxtral"}, "multimodal model of the type voxtral"),
    ],
)
def test_another_multimodal_model_is_rejected_by_what_it_is(
    config: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelLoadError, match=reason):
        load_engine(options(tmp_path))
