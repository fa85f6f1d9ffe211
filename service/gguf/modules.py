"""The tensors of a decoder's modules: their names in both formats, and their shapes."""

from collections.abc import Callable
from dataclasses import dataclass

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a model, from which the shapes of its tensors are computed."""

    vocab: int
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    experts: int = 0  # number of experts in a layer
    expert_mlp: int = 0


@dataclass(frozen=True, slots=True)
class Weight:
    """The tensor in the checkpoint that a tensor of the file is converted to.

    A tensor of three dimensions contains the tensors of all experts. Its `name` has a placeholder
    `{}` for the expert's index.
    """

    name: str
    shape: tuple[int, ...]  # the shape in the file
    # If it is set, the rows of each head are reordered: adjacent rotated pairs become two halves.
    num_heads: int | None = None
    offset: float = 0.0  # llama.cpp's converter has added it; here it is subtracted

    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return the name and the shape of each tensor in the checkpoint that it becomes."""
        if len(self.shape) < 3:
            return [(self.name, self.shape)]
        return [(self.name.format(expert), self.shape[1:]) for expert in range(self.shape[0])]


# For each tensor of a layer in the file, the tables below have the name of the module in the
# checkpoint's layer, and a function that returns the shape of its weight.
_Shape = Callable[[Sizes], tuple[int, ...]]
Modules = dict[str, tuple[str, _Shape]]


def _hidden(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.hidden,)


def _head_dim(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.head_dim,)


def _queries(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.heads * sizes.head_dim, sizes.hidden)


def _keys(sizes: Sizes) -> tuple[int, ...]:
    return (sizes.kv_heads * sizes.head_dim, sizes.hidden)


ATTENTION: Modules = {
    "attn_q": ("self_attn.q_proj", _queries),
    "attn_k": ("self_attn.k_proj", _keys),
    "attn_v": ("self_attn.v_proj", _keys),
    "attn_output": ("self_attn.o_proj", lambda s: (s.hidden, s.heads * s.head_dim)),
}
MLP: Modules = {
    "ffn_gate": ("mlp.gate_proj", lambda s: (s.mlp, s.hidden)),
    "ffn_up": ("mlp.up_proj", lambda s: (s.mlp, s.hidden)),
    "ffn_down": ("mlp.down_proj", lambda s: (s.hidden, s.mlp)),
}
EXPERTS: Modules = {
    "ffn_gate_inp": ("mlp.gate", lambda s: (s.experts, s.hidden)),
    "ffn_gate_exps": (
        "mlp.experts.{}.gate_proj",
        lambda s: (s.experts, s.expert_mlp, s.hidden),
    ),
    "ffn_up_exps": ("mlp.experts.{}.up_proj", lambda s: (s.experts, s.expert_mlp, s.hidden)),
    "ffn_down_exps": ("mlp.experts.{}.down_proj", lambda s: (s.experts, s.hidden, s.expert_mlp)),
}
FUSED_ATTENTION: Modules = {
    "attn_qkv": (
        "self_attn.qkv_proj",
        lambda s: ((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden),
    ),
    "attn_output": ATTENTION["attn_output"],
}
FUSED_MLP: Modules = {
    "ffn_up": ("mlp.gate_up_proj", lambda s: (2 * s.mlp, s.hidden)),
    "ffn_down": MLP["ffn_down"],
}
PRE_NORMS: Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "ffn_norm": ("post_attention_layernorm", _hidden),
}
POST_NORMS: Modules = {
    "post_attention_norm": ("post_attention_layernorm", _hidden),
    "post_ffw_norm": ("post_feedforward_layernorm", _hidden),
}
GEMMA_NORMS: Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "ffn_norm": ("pre_feedforward_layernorm", _hidden),
    **POST_NORMS,
}
GLM_NORMS: Modules = {
    "attn_norm": ("input_layernorm", _hidden),
    "post_attention_norm": ("post_self_attn_layernorm", _hidden),
    "ffn_norm": ("post_attention_layernorm", _hidden),
    "post_ffw_norm": ("post_mlp_layernorm", _hidden),
}
HEAD_NORMS: Modules = {
    "attn_q_norm": ("self_attn.q_norm", _head_dim),
    "attn_k_norm": ("self_attn.k_norm", _head_dim),
}
WIDE_NORMS: Modules = {
    "attn_q_norm": ("self_attn.q_norm", lambda s: (s.heads * s.head_dim,)),
    "attn_k_norm": ("self_attn.k_norm", lambda s: (s.kv_heads * s.head_dim,)),
}
QKV = ("attn_q", "attn_k", "attn_v")
