"""The architectures of GGUF files that are served: their configs, and what their tensors become.

llama.cpp's converter and loader say what a key means and what holds where it is missing:
https://github.com/ggml-org/llama.cpp, `conversion/` and `src/llama-model.cpp`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from service.errors import ModelLoadError
from service.gguf.file import GgufFile
from service.gguf.metadata import Metadata
from service.gguf.rope import (
    FREQUENCY_FACTORS,
    read_factors,
    read_rope,
    with_frequency_factors,
)

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that tensors' shapes follow from."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    experts: int = 0  # in a layer
    expert_mlp: int = 0


@dataclass(frozen=True, slots=True)
class Weight:
    """What a tensor of the file becomes in the checkpoint.

    A tensor of three dimensions holds those of all experts; its `name` has a place for theirs.
    """

    name: str
    shape: tuple[int, ...]  # as in the file
    num_heads: int | None = None  # its rows are pairs, head by head, and become halves
    offset: float = 0.0  # added by llama.cpp's converter, to be subtracted

    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """The names and shapes of its tensors in the checkpoint."""
        if len(self.shape) < 3:
            return [(self.name, self.shape)]
        return [(self.name.format(expert), self.shape[1:]) for expert in range(self.shape[0])]


# By a layer's tensor in the file: the module in the checkpoint's layer, and its weight's shape.
_Shape = Callable[[Sizes], tuple[int, ...]]
_Modules = dict[str, tuple[str, _Shape]]


def _hidden(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.hidden,)


def _head_dim(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.head_dim,)


def _queries(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.heads * sizes.head_dim, sizes.hidden)


def _keys(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.kv_heads * sizes.head_dim, sizes.hidden)


_ATTENTION: _Modules = {
    "attn_q": ("self_attn.q_proj", _queries),
    "attn_k": ("self_attn.k_proj", _keys),
    "attn_v": ("self_attn.v_proj", _keys),
    "attn_output": ("self_attn.o_proj", lambda s: (s.hidden, s.heads * s.head_dim)),
}
_MLP: _Modules = {
    "ffn_gate": ("mlp.gate_proj", lambda s: (s.mlp, s.hidden)),
    "ffn_up": ("mlp.up_proj", lambda s: (s.mlp, s.hidden)),
    "ffn_down": ("mlp.down_proj", lambda s: (s.hidden, s.mlp)),
}
_EXPERTS: _Modules = {
    "ffn_gate_inp": ("mlp.gate", lambda s: (s.experts, s.hidden)),
    "ffn_gate_exps": (
        "mlp.experts.{}.gate_proj",
        lambda s: (s.experts, s.expert_mlp, s.hidden),
    ),
    "ffn_up_exps": ("mlp.experts.{}.up_proj", lambda s: (s.experts, s.expert_mlp, s.hidden)),
    "ffn_down_exps": ("mlp.experts.{}.down_proj", lambda s: (s.experts, s.hidden, s.expert_mlp)),
}
_FUSED_ATTENTION: _Modules = {
    "attn_qkv": (
        "self_attn.qkv_proj",
        lambda s: ((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden),
    ),
    "attn_output": _ATTENTION["attn_output"],
}
_FUSED_MLP: _Modules = {
    "ffn_up": ("mlp.gate_up_proj", lambda s: (2 * s.mlp, s.hidden)),
    "ffn_down": _MLP["ffn_down"],
}
_PRE_NORMS: _Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "ffn_norm": ("post_attention_layernorm", _hidden),
}
_POST_NORMS: _Modules = {
    "post_attention_norm": ("post_attention_layernorm", _hidden),
    "post_ffw_norm": ("post_feedforward_layernorm", _hidden),
}
_GEMMA_NORMS: _Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "ffn_norm": ("pre_feedforward_layernorm", _hidden),
    **_POST_NORMS,
}
_GLM_NORMS: _Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "post_attention_norm": ("post_self_attn_layernorm", _hidden),
    "ffn_norm": ("post_attention_layernorm", _hidden),
    "post_ffw_norm": ("post_mlp_layernorm", _hidden),
}
_HEAD_NORMS: _Modules = {
    "attn_q_norm": ("self_attn.q_norm", _head_dim),
    "attn_k_norm": ("self_attn.k_norm", _head_dim),
}
_WIDE_NORMS: _Modules = {
    "attn_q_norm": ("self_attn.q_norm", lambda s: (s.heads * s.head_dim,)),
    "attn_k_norm": ("self_attn.k_norm", lambda s: (s.kv_heads * s.head_dim,)),
}
_QKV = ("attn_q", "attn_k", "attn_v")

_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `general.architecture` becomes one `model_type` of transformers."""

    model_type: str
    class_name: str
    modules: _Modules
    fields: Callable[[Metadata, GgufFile, Sizes], _Fields]  # of the config, beside the common ones
    biases: tuple[str, ...] = ()  # modules of a layer that have a bias always
    optional_biases: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by a config's field
    is_permuted: bool = False  # rotated pairs lie side by side: llama.cpp permutes q and k
    has_experts: bool = False
    is_partly_rotated: bool = False  # rope.dimension_count may be less than a head's width
    norm_offset: float = 0.0
    harmless: tuple[str, ...] = ()  # tensors that the config takes up, or that change nothing

    def config(self, metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
        """The fields of config.json that depend on the architecture.

        Raises:
            ModelLoadError: a key is missing, invalid, or says what cannot be served.
        """
        tensors = file.header.tensors
        if not self.is_partly_rotated:
            metadata.require("rope.dimension_count", sizes.head_dim)
        common = {
            "model_type": self.model_type,
            "architectures": [self.class_name],
            "dtype": "bfloat16",
            "vocab_size": sizes.vocab,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.mlp,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "max_position_embeddings": sizes.context,
            "rms_norm_eps": metadata.positive("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": HEAD not in tensors,
        }
        biases = {
            name: any(f"blk.0.{module}.bias" in tensors for module in modules)
            for name, modules in self.optional_biases.items()
        }
        return common | biases | self.fields(metadata, file, sizes)

    def weights(self, config: _Fields, sizes: Sizes) -> dict[str, Weight]:
        """What each tensor becomes that the file must have, by its name in the file."""
        norm = Weight("model.norm.weight", (sizes.hidden,), offset=self.norm_offset)
        weights = {
            EMBEDDING: Weight("model.embed_tokens.weight", (sizes.vocab, sizes.hidden)),
            "output_norm.weight": norm,
        }
        if not config["tie_word_embeddings"]:
            weights[HEAD] = Weight("lm_head.weight", (sizes.vocab, sizes.hidden))
        biased = set(self.biases)
        for name, modules in self.optional_biases.items():
            biased |= set(modules) if config[name] else set()
        for layer in range(sizes.layers):
            for module, (target, shape_of) in self.modules.items():
                shape = shape_of(sizes)
                num_heads = self._num_permuted_heads(module, sizes)
                offset = self.norm_offset if module.endswith("norm") else 0.0
                prefix, name = f"blk.{layer}.{module}", f"model.layers.{layer}.{target}"
                weights[f"{prefix}.weight"] = Weight(f"{name}.weight", shape, num_heads, offset)
                if module in biased:
                    weights[f"{prefix}.bias"] = Weight(f"{name}.bias", shape[:1], num_heads)
        return weights

    def _num_permuted_heads(self, module: str, sizes: Sizes) -> int | None:
        if not self.is_permuted:
            return None
        return {"attn_q": sizes.heads, "attn_k": sizes.kv_heads}.get(module)


def _llama(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    fields = {"rope_parameters": rope, "hidden_act": "silu"}
    window = metadata.integer("attention.sliding_window", None, minimum=0)
    if window:  # llama.cpp writes none, but others do for Mistral 7B v0.1
        return (
            fields
            | {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
            | {"sliding_window": window}
        )
    return fields


def _qwen(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    metadata.require("pooling_type", 0)
    return {
        "rope_parameters": read_rope(metadata),
        "hidden_act": "silu",
        "use_sliding_window": False,
    }


def _qwen3_moe(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
    metadata.require("expert_gating_func", 1)  # softmax
    metadata.require("expert_weights_norm", True)
    metadata.require("expert_weights_scale", 0.0, 1.0)
    return _qwen(metadata, file, sizes) | {
        "num_experts": sizes.experts,
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": sizes.expert_mlp,
        "norm_topk_prob": True,  # llama.cpp's code has it so
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _mistral3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    log_multiplier = metadata.number("rope.scaling.yarn_log_multiplier", 0.0)
    rope = read_rope(metadata)
    if rope["rope_type"] != "yarn":
        raise ModelLoadError("It has no rope.scaling.type of 'yarn', which mistral3 requires.")
    scales = {"mscale": 1.0, "mscale_all_dim": log_multiplier} if log_multiplier else {}
    beta = metadata.number("attention.temperature_scale", 0.0)
    return {
        "rope_parameters": rope | scales | {"llama_4_scaling_beta": beta},
        "hidden_act": "silu",
        "sliding_window": None,
    }


def _smollm3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    return {
        "rope_parameters": rope,
        "hidden_act": "silu",
        "use_sliding_window": False,
        # llama.cpp's code has it so, for every model of this architecture.
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


def _granite(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
    metadata.require("rope.scaling.finetuned", True)  # false: a model without positions
    # Granite 4 without state-space layers still has their sizes; llama.cpp does not read them.
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


def _olmo2(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
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


def _exaone4(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
    rope = with_frequency_factors(read_rope(metadata), file, sizes.head_dim, sizes.context)
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    return {
        "rope_parameters": rope,
        "hidden_act": "silu",
        # With a window, layers without one have no positions, in transformers as in llama.cpp.
        "sliding_window": window or None,
        "layer_types": _layer_types(metadata, sizes, period=4 if window else 1),
    }


def _glm4(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    num_rotated = metadata.integer("rope.dimension_count", sizes.head_dim // 2)
    partial = {"partial_rotary_factor": num_rotated / sizes.head_dim}
    return {"rope_parameters": read_rope(metadata) | partial, "hidden_act": "silu"}


def _phi3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:
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


_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"


def _long_factors(
    metadata: Metadata, file: GgufFile, num_rotated: int, original: int, sizes: Sizes
) -> _Fields:
    """LongRoPE's part of `rope_parameters`; nothing, if the file has no factors for it."""
    present = {name for name in (_LONG, _SHORT) if name in file.header.tensors}
    if not present:
        metadata.require("rope.scaling.type", "none")
        metadata.require("rope.scaling.attn_factor", 1.0)
        return {}
    factors = {}
    for tensor, name in ((_LONG, "long_factor"), (_SHORT, "short_factor")):
        if tensor not in present:
            raise ModelLoadError(f"It lacks the tensor {tensor}.")
        factors[name] = read_factors(file, tensor, num_rotated // 2)
    scale = sizes.context / original
    usual = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 < original else 1.0
    factor = metadata.positive("rope.scaling.attn_factor", usual)
    # transformers computes the usual one itself, in more digits.
    own = {} if math.isclose(factor, usual, rel_tol=1e-6) else {"attention_factor": factor}
    return {
        "rope_type": "longrope",
        "original_max_position_embeddings": original,
        **factors,
        **own,
    }


def _phi3_window(metadata: Metadata, sizes: Sizes) -> int | None:
    """The window of every layer; None if there is none. Files of 2024 lack it, see llama.cpp."""
    window = metadata.integer("attention.sliding_window", None, minimum=0)
    if window is not None:
        return window or None
    if sizes.layers in (32, 40) and sizes.context == 4096:
        return 2047
    if sizes.layers in (32, 40) and sizes.context == 131072:
        return None
    raise ModelLoadError("It lacks the metadata key phi3.attention.sliding_window.")


def _gemma(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    return {"rope_parameters": read_rope(metadata), "hidden_act": "gelu_pytorch_tanh"}


def _gemma2(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    return {
        "rope_parameters": read_rope(metadata),
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": _query_scalar(metadata, sizes, largest=46),
        "attn_logit_softcapping": metadata.positive("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.positive("final_logit_softcapping", 30.0),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "layer_types": _layer_types(metadata, sizes, period=2),
    }


def _gemma3(metadata: Metadata, file: GgufFile, sizes: Sizes) -> _Fields:  # noqa: ARG001
    window = metadata.integer("attention.sliding_window", 0, minimum=0)
    # Files of Google's and Ollama's have other names for the two bases.
    theta = metadata.positive("rope.global.freq_base", 1_000_000.0)
    local_theta = metadata.positive("rope.local.freq_base", 10000.0)
    local_theta = metadata.positive("rope.freq_base_swa", local_theta)
    metadata.value("mm.tokens_per_image")  # of the part for images, which is another file
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
        # Without a window all layers are global, whatever the pattern.
        "layer_types": _layer_types(metadata, sizes, period=6 if window else 1),
    }


def _query_scalar(metadata: Metadata, sizes: Sizes, largest: int) -> float:
    """What queries are divided by the root of: the width of a head, but for the largest model.

    The file does not say; llama.cpp tells the model of 27 billion parameters by its layers.
    """
    scale: float | None = metadata.positive("attention.scale", None)
    if scale is not None:
        return round(1 / scale**2, 3)
    return sizes.hidden // sizes.heads if sizes.layers == largest else sizes.head_dim


def _layer_types(metadata: Metadata, sizes: Sizes, period: int) -> list[str]:
    """Each layer's kind: of `period` layers, unless the file says otherwise, the last is global."""
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


_ALL_ATTENTION = tuple(_ATTENTION)

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        _PRE_NORMS | _ATTENTION | _MLP,
        _llama,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(_MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", _PRE_NORMS | _ATTENTION | _MLP, _qwen, biases=_QKV
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        _PRE_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
        _qwen,
        optional_biases={"attention_bias": _ALL_ATTENTION},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        _PRE_NORMS | _ATTENTION | _HEAD_NORMS | _EXPERTS,
        _qwen3_moe,
        optional_biases={"attention_bias": _ALL_ATTENTION},
        has_experts=True,
    ),
    "mistral3": Architecture(
        "ministral3",
        "Ministral3ForCausalLM",
        _PRE_NORMS | _ATTENTION | _MLP,
        _mistral3,
        is_permuted=True,
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        _PRE_NORMS | _FUSED_ATTENTION | _FUSED_MLP,
        _phi3,
        is_partly_rotated=True,
        harmless=(_LONG, _SHORT),
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        _PRE_NORMS | _ATTENTION | _MLP,
        _gemma,
        norm_offset=1.0,
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        _GEMMA_NORMS | _ATTENTION | _MLP,
        _gemma2,
        norm_offset=1.0,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _GEMMA_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
        _gemma3,
        norm_offset=1.0,
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        _PRE_NORMS | _ATTENTION | _MLP,
        _smollm3,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(_MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        _PRE_NORMS | _ATTENTION | _MLP,
        _granite,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(_MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        _GLM_NORMS | _ATTENTION | _FUSED_MLP,
        _glm4,
        optional_biases={"attention_bias": _QKV},
        is_partly_rotated=True,
    ),
    "exaone4": Architecture(
        "exaone4",
        "Exaone4ForCausalLM",
        _POST_NORMS | _ATTENTION | _HEAD_NORMS | _MLP,
        _exaone4,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        _POST_NORMS | _ATTENTION | _WIDE_NORMS | _MLP,
        _olmo2,
        optional_biases={"attention_bias": _ALL_ATTENTION},
    ),
}
