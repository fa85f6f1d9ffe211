"""The fields of config.json that an architecture has in addition to the common ones.

The meanings of keys and their defaults are those of llama.cpp's converter and loader:
https://github.com/ggml-org/llama.cpp, `conversion/` and `src/llama-model.cpp`. All functions raise
ModelLoadError for a key that is missing, invalid or has a value that is not supported.
"""

import math
from typing import Any

from service.errors import ModelLoadError
from service.gguf.file import GgufFile
from service.gguf.metadata import Metadata
from service.gguf.modules import Sizes
from service.gguf.rope import read_factors, read_rope, with_frequency_factors

Fields = dict[str, Any]


def llama(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    fields = {"rope_parameters": rope, "hidden_act": "silu"}
    window = metadata.integer("attention.sliding_window", None, minimum=0)
    if window:  # only converters other than llama.cpp's write it, for Mistral 7B v0.1
        return (
            fields
            | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
            | {"sliding_window": window}
        )
    return fields


def qwen(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    metadata.require("pooling_type", 0)
    return {
        "rope_parameters": read_rope(metadata),
        "hidden_act": "silu",
        "use_sliding_window": False,
    }


def qwen3_moe(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    metadata.require("expert_gating_func", 1)  # 1 is softmax
    metadata.require("expert_weights_norm", True)
    metadata.require("expert_weights_scale", 0.0, 1.0)
    return qwen(metadata, file, sizes) | {
        "num_experts": sizes.experts,
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": sizes.expert_mlp,
        "norm_topk_prob": True,  # fixed in llama.cpp's code
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def mistral3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    log_multiplier = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    rope = read_rope(metadata)
    if rope["rope_type"] != "yarn":
        raise ModelLoadError(
            "The file has no rope.scaling.type of 'yarn', which mistral3 requires."
        )
    scales = {"mscale": 1.0, "mscale_all_dim": log_multiplier} if log_multiplier else {}
    beta = metadata.number("attention.temperature_scale", 0.0)
    return {
        "rope_parameters": rope | scales | {"llama_4_scaling_beta": beta},
        "hidden_act": "silu",
        "sliding_window": None,
    }


def smollm3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    return {
        "rope_parameters": rope,
        "hidden_act": "silu",
        "use_sliding_window": False,
        # The value is fixed in llama.cpp's code, for every model of this architecture.
        "no_rope_layer_interval": 4,
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(sizes.layers)],
    }


_UNUSED_GRANITE_KEYS = (
    "expert_shared_feed_forward_length",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
)


def granite(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    metadata.require("rope.scaling.finetuned", True)  # False means a model without positions
    # Files of Granite 4 have sizes of state-space layers even if the model has no such layers.
    # llama.cpp does not read them then.
    for name in _UNUSED_GRANITE_KEYS:
        metadata.value(name)
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    return {
        "rope_parameters": rope,
        "hidden_act": "silu",
        "attention_multiplier": metadata.positive("attention.scale", sizes.head_dim**-0.5),
        "embedding_multiplier": metadata.positive("embedding_scale", 1.0),
        "residual_multiplier": metadata.positive("residual_scale", 1.0),
        "logits_scaling": metadata.positive("logit_scale"),
    }


def olmo2(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    rope = read_rope(metadata)
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    if not window:
        return {"rope_parameters": rope, "hidden_act": "silu"}
    local_theta = metadata.positive("rope.freq_base_swa", rope["rope_theta"])
    local = {"rope_type": "default", "rope_theta": local_theta}
    return {
        "model_type": "olmo3",
        "architectures": ["Olmo3ForCausalLM"],
        "rope_parameters": {"full_attention": rope, "sliding_attention": local},
        "hidden_act": "silu",
        "sliding_window": window,
        "layer_types": _layer_types(metadata, sizes, period=4),
    }


def exaone4(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    return {
        "rope_parameters": rope,
        "hidden_act": "silu",
        # If there is a window, the layers without a window have no rotary embedding, in
        # transformers as in llama.cpp.
        "sliding_window": window or None,
        "layer_types": _layer_types(metadata, sizes, period=4 if window else 1),
    }


def glm4(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    num_rotated = metadata.integer("rope.dimension_count", sizes.head_dim // 2)
    partial = {"partial_rotary_factor": num_rotated / sizes.head_dim}
    return {"rope_parameters": read_rope(metadata) | partial, "hidden_act": "silu"}


def phi3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
    num_rotated = metadata.integer("rope.dimension_count", sizes.head_dim)
    original = metadata.integer("rope.scaling.original_context_length", sizes.context)
    rope = {
        "rope_type": "default",
        "rope_theta": metadata.positive("rope.freq_base", 10000.0),
        "partial_rotary_factor": num_rotated / sizes.head_dim,
    }
    metadata.require("rope.scaling.type", "longrope", "none")
    metadata.require("rope.scaling.factor", 1.0)
    metadata.value("rope.scaling.finetuned")
    return {
        "rope_parameters": rope | _long_factors(metadata, file, num_rotated, original, sizes),
        "original_max_position_embeddings": original,
        "hidden_act": "silu",
        "sliding_window": _phi3_window(metadata, sizes),
    }


LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"


def _long_factors(
    metadata: Metadata, file: GgufFile, num_rotated: int, original: int, sizes: Sizes
) -> Fields:
    """Return LongRoPE's part of `rope_parameters`; empty if the file has no factors for it."""
    present = {name for name in (LONG_FACTORS, SHORT_FACTORS) if name in file.header.tensors}
    if not present:
        metadata.require("rope.scaling.type", "none")
        metadata.require("rope.scaling.attn_factor", 1.0)
        return {}
    factors = {}
    for tensor, name in ((LONG_FACTORS, "long_factor"), (SHORT_FACTORS, "short_factor")):
        if tensor not in present:
            raise ModelLoadError(f"The file lacks the tensor {tensor}.")
        factors[name] = read_factors(file, tensor, num_rotated // 2)
    scale = sizes.context / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 < original else 1.0
    factor = metadata.positive("rope.scaling.attn_factor", usual)
    # transformers computes the usual factor itself, with more digits.
    own = {} if math.isclose(factor, usual, rel_tol=1e-6) else {"attention_factor": factor}
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        **factors,
        **own,
    }


def _phi3_window(metadata: Metadata, sizes: Sizes) -> int | None:
    """Return the sliding window of every layer; None if there is none."""
    # Files of 2024 do not have the key. Then the values of llama.cpp are used.
    window = metadata.integer("attention.sliding_window", None, minimum=0)
    if window is not None:
        return window or None
    if sizes.layers in (32, 40) and sizes.context == 4096:
        return 2047
    if sizes.layers in (32, 40) and sizes.context == 131072:
        return None
    raise ModelLoadError("The file lacks the metadata key phi3.attention.sliding_window.")


def gemma(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    return {"rope_parameters": read_rope(metadata), "hidden_act": "gelu_pytorch_tanh"}


def gemma2(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    return {
        "rope_parameters": read_rope(metadata),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(metadata, sizes, largest=46),
        "attn_logit_softcapping": metadata.positive("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.positive("final_logit_softcapping", 30.0),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(metadata, sizes, period=2),
    }


def gemma3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:  # noqa: ARG001
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    # Files by Google and Ollama have other names for the two base frequencies.
    theta = metadata.positive("rope.global.freq_base", 1_000_000.0)
    local_theta = metadata.positive("rope.local.freq_base", 10000.0)
    local_theta = metadata.positive("rope.freq_base_swa", local_theta)
    metadata.value("mm.tokens_per_image")  # for the vision model, which is in another file
    return {
        "rope_parameters": {
            "full_attention": read_rope(metadata, theta),
            "sliding_attention": {"rope_type": "default", "rope_theta": local_theta},
        },
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(metadata, sizes, largest=62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": metadata.positive("final_logit_softcapping", None),
        "sliding_window": window or sizes.context,
        # If there is no window, all layers are global and the pattern has no effect.
        "layer_types": _layer_types(metadata, sizes, period=6 if window else 1),
    }


def _query_scalar(metadata: Metadata, sizes: Sizes, largest: int) -> float:
    """Return `query_pre_attn_scalar`: the head dimension, except in the largest model.

    Args:
        largest: Number of layers of the largest model.
    """
    # If the file lacks the scale, llama.cpp recognizes the model of 27 billion parameters by its
    # number of layers.
    scale: float | None = metadata.positive("attention.scale", None)
    if scale is not None:
        return round(1 / scale**2, 3)
    return sizes.hidden // sizes.heads if sizes.layers == largest else sizes.head_dim


def _layer_types(metadata: Metadata, sizes: Sizes, period: int) -> list[str]:
    """Return each layer's kind. By default the last one of each `period` layers is global."""
    pattern = metadata.value("attention.sliding_window_pattern", period)
    if period == 1:
        pattern = 1
    if type(pattern) is int and pattern > 0:
        pattern = [(layer + 1) % pattern != 0 for layer in range(sizes.layers)]
    if not isinstance(pattern, list) or len(pattern) != sizes.layers:
        raise ModelLoadError(
            "attention.sliding_window_pattern is neither a number of layers above 0 nor a list "
            "with an element for each layer."
        )
    return ["sliding_attention" if is_local else "full_attention" for is_local in pattern]
