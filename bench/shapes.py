"""The shapes of models that people serve, for checkpoints with random weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_MAX_POSITIONS = 32768
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a decoder, with the names of transformers' config.json.

    Rotary embeddings are not scaled, and positions end at 32768.
    """

    model_type: str  # "llama" or "qwen3"
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int  # of the model that has this shape
    rope_theta: float
    tie_word_embeddings: bool

    def config(self, vocab_size: int) -> dict[str, Any]:
        """Return config.json for a model with `vocab_size` tokens."""
        return {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": vocab_size,
            "max_position_embeddings": _MAX_POSITIONS,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "rms_norm_eps": 1e-5 if self.model_type == "llama" else 1e-6,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_bias": False,
            "hidden_act": "silu",
            "dtype": "bfloat16",
        }

    def tensors(self, vocab_size: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all weights by name, as transformers names them."""
        hidden, inner, head = self.hidden_size, self.intermediate_size, self.head_dim
        heads, kv_heads = self.num_attention_heads * head, self.num_key_value_heads * head
        layer: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (heads, hidden),
            "self_attn.k_proj": (kv_heads, hidden),
            "self_attn.v_proj": (kv_heads, hidden),
            "self_attn.o_proj": (hidden, heads),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        if self.model_type == "qwen3":
            layer |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
        names: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab_size, hidden)}
        for index in range(self.num_hidden_layers):
            names |= {f"model.layers.{index}.{name}": size for name, size in layer.items()}
        names["model.norm"] = (hidden,)
        if not self.tie_word_embeddings:
            names["lm_head"] = (vocab_size, hidden)
        return {f"{name}.weight": size for name, size in names.items()}


SHAPES: Mapping[str, Shape] = {
    # The shape of the embedded model.
    "llama-135m": Shape("llama", 576, 1536, 30, 9, 3, 64, 49152, 1e5, tie_word_embeddings=True),
    # The shapes of Llama 3.2 1B and 3B, and of Llama 3.1 8B.
    "llama-1b": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, 5e5, tie_word_embeddings=True),
    "llama-3b": Shape("llama", 3072, 8192, 28, 24, 8, 128, 128256, 5e5, tie_word_embeddings=True),
    "llama-8b": Shape("llama", 4096, 14336, 32, 32, 8, 128, 128256, 5e5, tie_word_embeddings=False),
    "qwen3-0.6b": Shape("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, 1e6, tie_word_embeddings=True),
    "qwen3-1.7b": Shape("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, 1e6, tie_word_embeddings=True),
    "qwen3-4b": Shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, 1e6, tie_word_embeddings=True),
    "qwen3-8b": Shape("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 1e6, tie_word_embeddings=False),
}
