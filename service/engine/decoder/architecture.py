"""The architectures of the native decoder, read from a model's transformers config.

The families share RMS norm, rotary embeddings, grouped-query attention and a gated MLP. They differ
in a few flags.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from service.errors import ModelLoadError

Activation = Literal["silu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class _Family:
    """The differences of one `model_type` from Llama."""

    is_fused: bool = False  # checkpoints have q, k and v in one tensor, gate and up in another
    has_attention_bias: bool = False  # on q, k, v and o, if the config has `attention_bias`
    has_qkv_bias: bool = False  # on q, k and v, always
    has_qk_norm: bool = False
    has_post_norms: bool = False  # norms after attention and MLP, in addition to those before
    is_gemma: bool = False  # norms scale by 1 + weight, embeddings by sqrt(hidden_size)
    window: Literal["none", "every layer", "by layer"] = "none"


_FAMILIES = {
    "llama": _Family(has_attention_bias=True),
    "mistral": _Family(window="every layer"),
    "smollm3": _Family(has_attention_bias=True, window="by layer"),
    "qwen2": _Family(has_qkv_bias=True, window="by layer"),
    "qwen3": _Family(has_attention_bias=True, has_qk_norm=True, window="by layer"),
    "phi3": _Family(is_fused=True, window="every layer"),
    "gemma": _Family(has_attention_bias=True, is_gemma=True),
    "gemma2": _Family(
        has_attention_bias=True, has_post_norms=True, is_gemma=True, window="by layer"
    ),
    "gemma3_text": _Family(
        has_attention_bias=True,
        has_qk_norm=True,
        has_post_norms=True,
        is_gemma=True,
        window="by layer",
    ),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """The parameters that differ between the layers of a model."""

    window: int | None  # number of positions that a token attends to; None for all
    rope: str | None  # name of the rotary embedding; None if the layer has none


@dataclass(frozen=True, slots=True)
class Architecture:
    """The sizes, flags and layers of a decoder."""

    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[Layer, ...]
    activation: Activation
    norm_eps: float
    norm_offset: float  # added to the weight of every norm
    embedding_scale: float
    attention_scale: float
    attention_softcap: float | None
    logits_softcap: float | None
    is_tied: bool  # the head is the embedding
    is_fused: bool
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool
    has_qk_norm: bool
    has_post_norms: bool


def read_architecture(config: Any) -> Architecture | None:
    """Return the architecture that a config describes; None if the native decoder lacks it.

    Raises:
        ModelLoadError: The config is inconsistent.
    """
    family = _FAMILIES.get(config.model_type)
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    activation = _ACTIVATIONS.get(str(name))
    if family is None or activation is None or getattr(config, "use_bidirectional_attention", None):
        return None
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    if num_heads % config.num_key_value_heads:
        raise ModelLoadError(
            f"The model has {num_heads} attention heads, which do not divide into groups for its "
            f"{config.num_key_value_heads} key and value heads."
        )
    has_attention_bias = family.has_attention_bias and config.attention_bias
    return Architecture(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        num_heads=num_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        layers=_layers(config, family),
        activation=activation,
        norm_eps=config.rms_norm_eps,
        norm_offset=1.0 if family.is_gemma else 0.0,
        embedding_scale=math.sqrt(config.hidden_size) if family.is_gemma else 1.0,
        attention_scale=getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5,
        attention_softcap=getattr(config, "attn_logit_softcapping", None)
        if config.model_type == "gemma2"  # Gemma 3 has the field and does not use it
        else None,
        logits_softcap=getattr(config, "final_logit_softcapping", None),
        is_tied=config.tie_word_embeddings,
        is_fused=family.is_fused,
        has_qkv_bias=family.has_qkv_bias or has_attention_bias,
        has_o_bias=has_attention_bias,
        has_mlp_bias=getattr(config, "mlp_bias", False),
        has_qk_norm=family.has_qk_norm,
        has_post_norms=family.has_post_norms,
    )


def _layers(config: Any, family: _Family) -> tuple[Layer, ...]:
    indices = range(config.num_hidden_layers)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(indices)
    window = getattr(config, "sliding_window", None)
    has_rope = getattr(config, "no_rope_layers", None) or [1] * len(indices)
    is_one_rope = "rope_type" in config.rope_parameters
    return tuple(
        Layer(
            window=window if _is_sliding(family, kinds[i]) else None,
            rope=("" if is_one_rope else kinds[i]) if has_rope[i] else None,
        )
        for i in indices
    )


def _is_sliding(family: _Family, kind: str) -> bool:
    return family.window == "every layer" or (
        family.window == "by layer" and kind == "sliding_attention"
    )
