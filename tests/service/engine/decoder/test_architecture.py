from dataclasses import replace
from typing import Any

import pytest

from service.engine.decoder.architecture import Architecture, Layer, read_architecture
from service.errors import ModelLoadError
from tests.service.engine.models import CONFIGS, make_config

LEAN = {
    "llama", "llama-multi-head", "llama-multi-query", "llama-yarn", "mistral", "qwen2", "qwen3",
    "gemma2", "gemma3", "phi3", "smollm3",
}  # fmt: skip


def architecture(name: str, **changes: Any) -> Architecture | None:
    model_type, fields = CONFIGS[name]
    return read_architecture(make_config(model_type, **fields | changes))


def lean(name: str, **changes: Any) -> Architecture:
    found = architecture(name, **changes)
    assert found is not None
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_only_families_like_llama_have_an_architecture(name: str) -> None:
    assert (architecture(name) is not None) == (name in LEAN)


def test_llama_config_is_read_completely() -> None:
    assert lean("llama") == Architecture(
        hidden_size=32,
        intermediate_size=48,
        vocab_size=97,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        layers=(Layer(None, ""),) * 3,
        activation="silu",
        norm_eps=1e-6,
        norm_offset=0.0,
        embedding_scale=1.0,
        attention_scale=10**-0.5,
        attention_softcap=None,
        logits_softcap=None,
        is_tied=False,
        is_fused=False,
        has_qkv_bias=False,
        has_o_bias=False,
        has_mlp_bias=False,
        has_qk_norm=False,
        has_post_norms=False,
    )


def test_llama_with_biases() -> None:
    biased = lean("llama", attention_bias=True, mlp_bias=True)
    assert biased == replace(lean("llama"), has_qkv_bias=True, has_o_bias=True, has_mlp_bias=True)


def test_missing_head_dim_is_hidden_size_over_heads() -> None:
    assert lean("llama", head_dim=None).head_dim == 8


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("mistral", [6, 6, 6]),
        ("phi3", [6, 6, 6]),
        ("qwen2", [None, 6, 6]),
        ("gemma2", [6, None, 6]),
        ("gemma3", [6, None, 6]),
        ("smollm3", [None, None, None]),
    ],
)
def test_sliding_windows_are_read_for_each_layer(name: str, windows: list[int | None]) -> None:
    assert [layer.window for layer in lean(name).layers] == windows


def test_sliding_window_in_a_llama_config_is_ignored() -> None:
    assert [layer.window for layer in lean("llama", sliding_window=6).layers] == [None] * 3


def test_layers_without_positions() -> None:
    assert [layer.rope for layer in lean("smollm3").layers] == ["", None, ""]


def test_layers_of_each_kind_have_a_rope_of_their_own() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert [layer.rope for layer in lean("gemma3").layers] == kinds


def test_gemma_2_has_softcaps_and_post_norms() -> None:
    gemma = lean("gemma2")
    assert gemma.norm_offset == 1.0
    assert gemma.embedding_scale == 32**0.5
    assert gemma.attention_scale == 7**-0.5
    assert (gemma.attention_softcap, gemma.logits_softcap) == (3.0, 9.0)
    assert gemma.has_post_norms
    assert gemma.is_tied
    assert gemma.activation == "gelu_tanh"


def test_gemma_3_caps_no_attention_scores() -> None:
    assert lean("gemma3", attn_logit_softcapping=3.0).attention_softcap is None


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_other_activations_are_left_to_transformers(activation: str) -> None:
    assert architecture("llama", hidden_act=activation) is None


def test_attention_both_ways_is_left_to_transformers() -> None:
    assert architecture("gemma3", use_bidirectional_attention=True) is None


def test_heads_that_make_no_groups() -> None:
    with pytest.raises(ModelLoadError, match="3 key and value heads"):
        architecture("llama", num_key_value_heads=3)
