"""The native decoder: computes a step of a Llama-like model in five calls per layer.

A layer is four linear layers and attention. Norms, gates and residuals are part of the linear
layers. transformers' modules spend 35 ms of a step on other things than arithmetic (30 layers,
2 cores).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from service.engine.decoder.architecture import Architecture
from service.engine.decoder.attention import Attention, LayerAttention
from service.engine.decoder.embedding import Embedding, FloatEmbedding, GroupedEmbedding
from service.engine.decoder.linear import Gate, Linear, MakeLinear, RmsNorm, make_joined
from service.engine.decoder.rope import Rope
from service.engine.decoder.weights import Weights
from service.engine.gguf_blocks import BlockWeight
from service.engine.layout import Layout
from service.engine.transfer import to_device

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """The weights of a layer. Only Gemma 2 and 3 have the post norms."""

    qkv: Linear
    attention: LayerAttention
    rope: str | None
    o: Linear
    gate_up: Linear
    down: Linear
    post_attention_norm: RmsNorm | None
    post_mlp_norm: RmsNorm | None


class Decoder:
    """`service.engine.model_runner.Model` for an `Architecture`.

    Args:
        head: The head, with the last norm before it.
        ropes: The rotary embeddings by `DecoderLayer.rope`.
        hidden_dtype: Type of the rows between the layers.
        is_batch_invariant: True if a row is computed identically in every batch.
    """

    def __init__(
        self,
        architecture: Architecture,
        embedding: Embedding,
        layers: list[DecoderLayer],
        head: Linear,
        attention: Attention,
        ropes: dict[str, Rope],
        hidden_dtype: torch.dtype,
        *,
        is_batch_invariant: bool = False,
    ) -> None:
        self.is_batch_invariant = is_batch_invariant
        self._embedding_scale = rounded_embedding_scale(architecture, embedding.dtype)
        self._logits_softcap = architecture.logits_softcap
        self._embedding = embedding
        self._layers = layers
        self._head = head
        self._attention = attention
        self._ropes = ropes
        self._hidden_dtype = hidden_dtype

    def block_tensors(self) -> list[Tensor]:
        """See `service.engine.model_runner.Model.block_tensors`."""
        return self._attention.block_tensors()

    def forward(self, layout: Layout, rows: list[int]) -> Tensor:
        """Compute a step; see `service.engine.model_runner.Model`.

        Returns:
            The last layer's output in `rows`: [len(rows), hidden_size].
        """
        numbers = (layout.token_ids(), layout.positions(), rows)
        arrays = [np.array(n, dtype=np.int64) for n in numbers] + self._attention.plan(layout)
        token_ids, positions, index, *rest = to_device(arrays, self._embedding.device)
        ropes = {name: rope.at(positions) for name, rope in self._ropes.items()}
        self._attention.begin_step(rest, ropes)
        x = self._embedding(token_ids).to(self._hidden_dtype) * self._embedding_scale
        for layer in self._layers:
            x = run_layer(layer, x, self._attention)
        return x[index]

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of n rows that `forward` returned: [n, vocab_size], float32."""
        return soft_capped(self._head(hidden).float(), self._logits_softcap)


def run_layer(layer: DecoderLayer, x: Tensor, attention: Attention) -> Tensor:
    """Return a layer's output [T, hidden_size] for the rows `x` [T, hidden_size] of a step.

    `Attention.plan` and `Attention.begin_step` were called for the step.
    """
    attended = attention.attend(layer.attention, layer.rope, layer.qkv(x))
    x = _add(layer.o, attended, x, layer.post_attention_norm)
    return _add(layer.down, layer.gate_up(x), x, layer.post_mlp_norm)


def rounded_embedding_scale(architecture: Architecture, dtype: torch.dtype) -> float:
    """Return the factor of embeddings, rounded to `dtype` as in transformers."""
    return float(torch.tensor(architecture.embedding_scale).to(dtype))


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return cap * tanh(logits / cap); the logits themselves if there is no cap."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _add(linear: Linear, x: Tensor, residual: Tensor, post_norm: RmsNorm | None) -> Tensor:
    """Return `residual` plus the output of `linear` for `x`, with the post norm if there is one."""
    if post_norm is None:
        return linear(x, residual)
    return residual + post_norm(linear(x))


def read_layer(
    index: int, weights: Weights, a: Architecture, make_linear: MakeLinear, norm_dtype: torch.dtype
) -> DecoderLayer:
    """Read layer `index` from a checkpoint with transformers' tensor names.

    Raises:
        ModelLoadError: A tensor is missing or has the wrong shape.
    """

    def norm(name: str, size: int = a.hidden_size) -> RmsNorm:
        weight = weights.shaped(f"{name}.weight", size).float() + a.norm_offset
        return RmsNorm(weight.to(norm_dtype), a.norm_eps)

    def linear(
        prefix: str,
        names: dict[str, int],
        num_inputs: int,
        has_bias: bool,
        prologue: RmsNorm | Gate | None,
    ) -> Linear:
        """Read linear layers that have the same input, as one layer.

        Args:
            names: The output size of each layer, by its name after `prefix`.
        """
        parts = {f"{prefix}.{name}": n for name, n in names.items()}
        weight = [weights.linear(f"{name}.weight", n, num_inputs) for name, n in parts.items()]
        bias = [weights.shaped(f"{name}.bias", n) for name, n in parts.items() if has_bias]
        return make_joined(make_linear, weight, torch.cat(bias) if bias else None, prologue)

    num_queries, num_keys = a.num_heads * a.head_dim, a.num_kv_heads * a.head_dim
    qkv = {"q_proj": num_queries, "k_proj": num_keys, "v_proj": num_keys}
    gate_up = {"gate_proj": a.intermediate_size, "up_proj": a.intermediate_size}
    if a.is_fused:
        qkv = {"qkv_proj": num_queries + 2 * num_keys}
        gate_up = {"gate_up_proj": 2 * a.intermediate_size}
    # "post_attention_layernorm" is the norm before the MLP in Llama, and after attention in Gemma.
    mlp_norm = "pre_feedforward_layernorm" if a.has_post_norms else "post_attention_layernorm"

    name = f"model.layers.{index}"
    attn, mlp = f"{name}.self_attn", f"{name}.mlp"
    return DecoderLayer(
        qkv=linear(attn, qkv, a.hidden_size, a.has_qkv_bias, norm(f"{name}.input_layernorm")),
        attention=LayerAttention(
            index,
            a.layers[index].window,
            norm(f"{attn}.q_norm", a.head_dim) if a.has_qk_norm else None,
            norm(f"{attn}.k_norm", a.head_dim) if a.has_qk_norm else None,
        ),
        rope=a.layers[index].rope,
        o=linear(attn, {"o_proj": a.hidden_size}, num_queries, a.has_o_bias, None),
        gate_up=linear(mlp, gate_up, a.hidden_size, a.has_mlp_bias, norm(f"{name}.{mlp_norm}")),
        down=linear(
            mlp,
            {"down_proj": a.hidden_size},
            a.intermediate_size,
            a.has_mlp_bias,
            Gate(a.activation),
        ),
        post_attention_norm=norm(f"{name}.post_attention_layernorm") if a.has_post_norms else None,
        post_mlp_norm=norm(f"{name}.post_feedforward_layernorm") if a.has_post_norms else None,
    )


def read_embedding(weights: Weights, a: Architecture, dtype: torch.dtype) -> Embedding:
    """Read the embedding, in `dtype` or as the checkpoint stores it.

    Raises:
        ModelLoadError: The tensor is missing or has the wrong shape.
    """
    shape = a.vocab_size, a.hidden_size
    table = weights.grouped(_EMBEDDING, *shape)
    if table is not None:
        # Blocks are read from the mapped file, which must not stay in use.
        return GroupedEmbedding(table.clone() if isinstance(table, BlockWeight) else table)
    return FloatEmbedding(weights.shaped(_EMBEDDING, *shape).to(dtype))


def read_head(
    weights: Weights, a: Architecture, make_linear: MakeLinear, norm_dtype: torch.dtype
) -> Linear:
    """Read the head with the last norm before it.

    Raises:
        ModelLoadError: A tensor is missing or has the wrong shape.
    """
    is_tied = a.is_tied and _HEAD not in weights
    head = weights.linear(_EMBEDDING if is_tied else _HEAD, a.vocab_size, a.hidden_size)
    scale = weights.shaped("model.norm.weight", a.hidden_size).float() + a.norm_offset
    return make_linear(head, None, RmsNorm(scale.to(norm_dtype), a.norm_eps))
