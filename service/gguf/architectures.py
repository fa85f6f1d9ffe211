"""The supported architectures of GGUF files: their configs and their tensors."""

from collections.abc import Callable
from dataclasses import dataclass, field

from service.gguf import fields
from service.gguf.fields import Fields
from service.gguf.file import GgufFile
from service.gguf.metadata import Metadata
from service.gguf.modules import (
    ATTENTION,
    EMBEDDING,
    EXPERTS,
    FUSED_ATTENTION,
    FUSED_MLP,
    GEMMA_NORMS,
    GLM_NORMS,
    HEAD,
    HEAD_NORMS,
    MLP,
    POST_NORMS,
    PRE_NORMS,
    QKV,
    WIDE_NORMS,
    Modules,
    Sizes,
    Weight,
)
from service.gguf.rope import FREQUENCY_FACTORS


@dataclass(frozen=True, slots=True)
class Architecture:
    """The conversion of one `general.architecture` to one `model_type` of transformers."""

    model_type: str
    class_name: str
    modules: Modules
    # Returns the fields of config.json that only this architecture has.
    own_fields: Callable[[Metadata, GgufFile, Sizes], Fields]
    biases: tuple[str, ...] = ()  # modules of a layer that always have a bias
    # The modules that have a bias if a field of the config is true, by the name of the field.
    optional_biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_permuted: bool = False  # llama.cpp permutes q and k, so rotated pairs are adjacent
    has_experts: bool = False
    is_partly_rotated: bool = False  # rope.dimension_count may be less than a head's width
    norm_offset: float = 0.0
    harmless: tuple[str, ...] = ()  # tensors that become config fields, or have no effect

    def config(self, metadata: Metadata, file: GgufFile, sizes: Sizes) -> Fields:
        """Return the fields of config.json that depend on the architecture.

        Raises:
            ModelLoadError: A key is missing, invalid or has a value that is not supported.
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
        return common | biases | self.own_fields(metadata, file, sizes)

    def weights(self, config: Fields, sizes: Sizes) -> dict[str, Weight]:
        """Return the tensors that the file must have, by their names in the file."""
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


_ALL_ATTENTION = tuple(ATTENTION)

ARCHITECTURES = {
    "llama": Architecture(
        "llama",
        "LlamaForCausalLM",
        PRE_NORMS | ATTENTION | MLP,
        fields.llama,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "qwen2": Architecture(
        "qwen2", "Qwen2ForCausalLM", PRE_NORMS | ATTENTION | MLP, fields.qwen, biases=QKV
    ),
    "qwen3": Architecture(
        "qwen3",
        "Qwen3ForCausalLM",
        PRE_NORMS | ATTENTION | HEAD_NORMS | MLP,
        fields.qwen,
        optional_biases={"attention_bias": _ALL_ATTENTION},
    ),
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        PRE_NORMS | ATTENTION | HEAD_NORMS | EXPERTS,
        fields.qwen3_moe,
        optional_biases={"attention_bias": _ALL_ATTENTION},
        has_experts=True,
    ),
    "mistral3": Architecture(
        "ministral3",
        "Ministral3ForCausalLM",
        PRE_NORMS | ATTENTION | MLP,
        fields.mistral3,
        is_permuted=True,
    ),
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        PRE_NORMS | FUSED_ATTENTION | FUSED_MLP,
        fields.phi3,
        is_partly_rotated=True,
        harmless=(fields.LONG_FACTORS, fields.SHORT_FACTORS),
    ),
    "gemma": Architecture(
        "gemma",
        "GemmaForCausalLM",
        PRE_NORMS | ATTENTION | MLP,
        fields.gemma,
        norm_offset=1.0,
    ),
    "gemma2": Architecture(
        "gemma2",
        "Gemma2ForCausalLM",
        GEMMA_NORMS | ATTENTION | MLP,
        fields.gemma2,
        norm_offset=1.0,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        GEMMA_NORMS | ATTENTION | HEAD_NORMS | MLP,
        fields.gemma3,
        norm_offset=1.0,
    ),
    "smollm3": Architecture(
        "smollm3",
        "SmolLM3ForCausalLM",
        PRE_NORMS | ATTENTION | MLP,
        fields.smollm3,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "granite": Architecture(
        "granite",
        "GraniteForCausalLM",
        PRE_NORMS | ATTENTION | MLP,
        fields.granite,
        optional_biases={"attention_bias": _ALL_ATTENTION, "mlp_bias": tuple(MLP)},
        is_permuted=True,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "glm4": Architecture(
        "glm4",
        "Glm4ForCausalLM",
        GLM_NORMS | ATTENTION | FUSED_MLP,
        fields.glm4,
        optional_biases={"attention_bias": QKV},
        is_partly_rotated=True,
    ),
    "exaone4": Architecture(
        "exaone4",
        "Exaone4ForCausalLM",
        POST_NORMS | ATTENTION | HEAD_NORMS | MLP,
        fields.exaone4,
        harmless=(FREQUENCY_FACTORS,),
    ),
    "olmo2": Architecture(
        "olmo2",
        "Olmo2ForCausalLM",
        POST_NORMS | ATTENTION | WIDE_NORMS | MLP,
        fields.olmo2,
        optional_biases={"attention_bias": _ALL_ATTENTION},
    ),
}
