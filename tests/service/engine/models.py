"""Tiny models with random weights, and their reference outputs by transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB_SIZE = 97

# transformers has no types for these.
_AutoModel: Any = AutoModelForCausalLM
_GenerationConfig: Any = GenerationConfig

# All dimensions differ, there are groups of heads, and windows are shorter than the prompts. So the
# tests fail if one size is used instead of another.
_LLAMA = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_ALTERNATING = {
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "v_head_dim": 12,
}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-multi-head": ("llama", _LLAMA | {"num_key_value_heads": 4}),
    "llama-multi-query": ("llama", _LLAMA | {"num_key_value_heads": 1}),
    "llama-yarn": (
        "llama",
        _LLAMA
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 6}),
    "mixtral": ("mixtral", _LLAMA | {"sliding_window": 6, "num_local_experts": 4}),
    "qwen2": (
        "qwen2",
        {k: v for k, v in _LLAMA.items() if k != "head_dim"}
        | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 6},
    ),
    "qwen3": ("qwen3", _LLAMA),
    "qwen3-moe": ("qwen3_moe", _LLAMA | _MOE | {"num_experts": 4}),
    "gemma2": (
        "gemma2",
        _LLAMA
        | _ALTERNATING
        | {
            "query_pre_attn_scalar": 7,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 9.0,
        },
    ),
    "gemma3": ("gemma3_text", _LLAMA | _ALTERNATING | {"query_pre_attn_scalar": 7}),
    "phi3": ("phi3", {k: v for k, v in _LLAMA.items() if k != "head_dim"} | {"sliding_window": 6}),
    "olmo3": ("olmo3", _LLAMA | _ALTERNATING),
    "cohere2": ("cohere2", _LLAMA | _ALTERNATING),
    "smollm3": ("smollm3", _LLAMA | {"no_rope_layers": [1, 0, 1]}),
    "granite": ("granite", _LLAMA | {"attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "glm4": ("glm4", _LLAMA),
    "gpt_neox": (
        "gpt_neox",
        {k: v for k, v in _LLAMA.items() if k not in {"head_dim", "num_key_value_heads"}},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {k: v for k, v in _LLAMA.items() if k != "head_dim"}
        | _MLA
        | _MOE
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    ),
    "gpt2": (
        "gpt2",
        {"vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 32,
            "word_embed_proj_dim": 32,
            "ffn_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
}


def make_config(model_type: str, **fields: Any) -> PreTrainedConfig:
    config: PreTrainedConfig = CONFIG_MAPPING[model_type](**fields)
    return config


def kv_bytes_per_token(config: PreTrainedConfig) -> int:
    """Return the bytes of one token in the cache in float32, computed from the config."""
    fields: dict[str, Any] = config.to_dict()
    heads = fields.get("num_attention_heads") or fields["n_head"]
    dim = fields.get("head_dim") or (fields.get("hidden_size") or fields["n_embd"]) // heads
    dims: int = 2 * dim
    if "kv_lora_rank" in fields:
        dims = fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"] + fields["v_head_dim"]
    layers: int = fields.get("num_hidden_layers") or fields["n_layer"]
    kv_heads: int = fields.get("num_key_value_heads") or heads
    return 4 * layers * kv_heads * dims


def save_model(path: Path, config: PreTrainedConfig) -> Path:
    """Write a checkpoint. Its weights are so large that one token is always clearly likeliest."""
    torch.manual_seed(0)
    model: PreTrainedModel = _AutoModel.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
    model.generation_config = _GenerationConfig()
    model.save_pretrained(path)
    return path


def reference(path: Path) -> Callable[[tuple[int, ...], int], list[int]]:
    """Return a function that runs greedy `model.generate` of transformers on one prompt."""
    model: Any = _AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    def generate(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
        input_ids = torch.tensor([prompt])
        output = model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            generation_config=_GenerationConfig(
                do_sample=False, max_new_tokens=max_tokens, pad_token_id=0
            ),
        )
        answer: list[int] = output[0, len(prompt) :].tolist()
        return answer

    return generate


def reference_logprobs(path: Path) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Return a function that computes the log probabilities after each token with transformers.

    Its result is [T, vocab_size].
    """
    model: Any = _AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")

    def logprobs(token_ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(model(torch.tensor([token_ids])).logits[0].float(), dim=-1)

    return logprobs
