import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from service.domain.engine import Request, TokenOutput
from service.domain.engine_settings import KVCacheDType, Quantization
from service.domain.sampling import SamplingParams
from service.engine.load import (
    EngineOptions,
    check_kv_cache_dtype,
    check_quantization,
    load_engine,
    load_model,
)
from service.errors import ModelLoadError
from tests.service.engine.models import (
    CONFIGS,
    kv_bytes_per_token,
    make_config,
    save_model,
)
from tests.support.device import DEVICE
from tests.support.native_kernels import NEEDS_KERNELS

_SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
_DECODER = _SMALL | {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "state space": ("mamba", _SMALL | {"state_size": 4}, "position ids"),
    "alibi": (
        "bloom",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "position",
    ),
    "alibi, its own attention": (
        "mpt",
        {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4},
        "position ids",
    ),
    "an attention of its own": (
        "codegen",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        "attention interface",
    ),
    "linear attention": (
        "qwen3_next",
        _DECODER
        | {
            "num_hidden_layers": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "linear_attention",
    ),
    "chunked attention": (
        "llama4_text",
        _DECODER | _EXPERTS | {"intermediate_size_mlp": 48, "attention_chunk_size": 16},
        "chunked_attention",
    ),
    "attention sinks": ("gpt_oss", _DECODER | _EXPERTS | {"sliding_window": 8}, "s_aux"),
    "attention both ways": ("bert", _SMALL | {"intermediate_size": 48}, "non-causal"),
    "a mask of its own": ("doge", _DECODER, "attention_mask"),
    "two attentions a layer": ("diffllama", _DECODER, "attends twice"),
    "a window in the mask alone": (
        "phimoe",
        _DECODER | _EXPERTS | {"sliding_window": 8},
        "sliding window",
    ),
}


def options(path: Path) -> EngineOptions:
    return EngineOptions(
        path, device=DEVICE, dtype="float32", block_size=16, kv_cache_memory_bytes=2**24
    )


def rejection(options: EngineOptions) -> str:
    """Return the message of the error with which a load fails: one line, for the operator."""
    with pytest.raises(ModelLoadError) as caught:
        load_engine(options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = CONFIGS["llama"]
    return save_model(tmp_path_factory.mktemp("llama"), make_config(model_type, **fields))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    """Return a copy of the llama checkpoint that the test may change."""
    return Path(shutil.copytree(llama, tmp_path / "copy"))


def generate(options: EngineOptions, prompt_len: int, max_tokens: int | None = None) -> list[int]:
    core, _ = load_engine(options)
    core.add(0, Request((5,) * prompt_len, SamplingParams(temperature=0.0, max_tokens=max_tokens)))
    tokens: list[int] = []
    while core.has_unfinished:
        for output in core.step():
            assert isinstance(output.output, TokenOutput)
            tokens += output.output.token_ids
    return tokens


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_model_is_rejected_with_the_reason(name: str, tmp_path: Path) -> None:
    model_type, fields, reason = UNSUPPORTED[name]
    text = rejection(options(save_model(tmp_path, make_config(model_type, **fields))))
    assert reason in text
    assert text.endswith(".")


def test_int8_cache_is_rejected_where_it_is_not_supported(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="kv_cache_dtype=int8 is supported only on CPUs"):
        check_kv_cache_dtype("int8", torch.device("cuda"))
    # The heads of this model have 10 dimensions.
    quantized = replace(options(llama), device="cpu", kv_cache_dtype="int8", cache_dir=tmp_path)
    text = rejection(quantized)
    assert text.startswith("kv_cache_dtype=int8 is not supported for this model: ")
    model_type, fields = CONFIGS["gpt2"]
    gpt2 = save_model(tmp_path / "gpt2", make_config(model_type, **fields))
    text = rejection(replace(options(gpt2), kv_cache_dtype="bfloat16"))
    assert text == "kv_cache_dtype=bfloat16 is not supported for a model of the type gpt2."


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16", "float16"])
def test_cache_has_another_type_than_weights(llama: Path, kv_cache_dtype: KVCacheDType) -> None:
    chosen = replace(options(llama), kv_cache_dtype=kv_cache_dtype)
    model = load_model(chosen)
    assert model.description["kv_cache_dtype"] == kv_cache_dtype
    assert {shape.dtype for shape in model.kv_shapes} == {getattr(torch, kv_cache_dtype)}
    assert generate(chosen, 20, 8)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in rejection(options(tmp_path / "none"))


def test_directory_without_config_is_rejected(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "cannot be loaded" in rejection(options(copy))


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"model_type": "no such model"}',
        '{"model_type": "t5"}',
        '{"model_type": "llama", "hidden_size": "wide"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
    ],
)
def test_invalid_config_is_rejected(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content)
    text = rejection(options(copy))
    assert "cannot be loaded" in text or "config.json is not" in text


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_weights_cut_short(copy: Path, size: int) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    assert "cannot be loaded" in rejection(options(copy))


def test_directory_without_weights_is_rejected(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert "is not complete" in rejection(options(copy))


def test_missing_tensors_are_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    text = rejection(options(copy))
    assert "not complete" in text
    assert "up_proj" in text


def test_tensors_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    assert "mlp.gate_proj.weight has the shape [48, 32]" in rejection(options(copy))


def test_tensors_of_another_shape_are_named_on_the_transformers_backend(tmp_path: Path) -> None:
    model_type, fields = CONFIGS["granite"]
    path = save_model(tmp_path, make_config(model_type, **fields))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    assert "mlp.down_proj.weight has the shape [32, 48]" in rejection(options(path))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_device_is_rejected(llama: Path) -> None:
    assert "no CUDA device" in rejection(replace(options(llama), device="cuda"))


@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_every_dtype_answers(llama: Path, dtype: Any) -> None:
    assert len(generate(replace(options(llama), dtype=dtype), prompt_len=9, max_tokens=5)) == 5


def test_default_context_is_the_models_own(llama: Path) -> None:
    assert load_engine(options(llama))[1] == 128
    core, max_model_len = load_engine(replace(options(llama), max_model_len=100))
    assert (core.quantization, max_model_len) == ("float32", 100)


def test_no_context_longer_than_the_models_own(llama: Path) -> None:
    assert "model's own 128" in rejection(replace(options(llama), max_model_len=129))


def budget(path: Path, num_tokens: int) -> EngineOptions:
    config = make_config(CONFIGS["llama"][0], **CONFIGS["llama"][1])
    return replace(options(path), kv_cache_memory_bytes=kv_bytes_per_token(config) * num_tokens)


def test_cache_too_small_for_two_blocks_is_rejected(llama: Path) -> None:
    assert "minimum is 2 blocks" in rejection(budget(llama, 31))
    assert "minimum is 2 blocks" in rejection(budget(llama, 0))


def test_cache_smaller_than_the_context_shortens_the_context(llama: Path) -> None:
    core, max_model_len = load_engine(budget(llama, 70))
    assert max_model_len == 64
    assert core.stats.num_kv_blocks == 4
    assert len(generate(budget(llama, 70), prompt_len=60)) == 4


def test_cache_is_limited_to_what_the_sequences_can_use(llama: Path) -> None:
    core, _ = load_engine(replace(options(llama), max_num_seqs=3, max_model_len=33))
    assert core.stats.num_kv_blocks == 9


def test_without_a_budget_the_sequences_have_what_they_could_fill(llama: Path) -> None:
    core, _ = load_engine(replace(options(llama), kv_cache_memory_bytes=None, max_num_seqs=9))
    assert core.stats.num_kv_blocks == 9 * 8


def test_cache_larger_than_the_memory_is_rejected(llama: Path) -> None:
    endless = replace(
        options(llama),
        kv_cache_memory_bytes=1 << 60,
        max_num_seqs=1 << 45,
        max_num_batched_tokens=1 << 45,
    )
    assert "do not fit into the memory" in rejection(endless)


@pytest.mark.parametrize("block_size", [1, 16])
def test_shortest_context_generates_one_token(llama: Path, block_size: int) -> None:
    """The cache has two tokens or one block, and the warm-up must fit too."""
    shortest = replace(options(llama), max_model_len=2, max_num_seqs=1, block_size=block_size)
    assert load_engine(shortest)[1] == 2
    assert len(generate(shortest, prompt_len=1)) == 1


def test_loaded_engine_is_warm_and_empty(llama: Path) -> None:
    core, _ = load_engine(options(llama))
    assert not core.has_unfinished
    assert core.stats.num_free_kv_blocks == core.stats.num_kv_blocks


def test_two_engines_of_a_process_keep_apart(llama: Path) -> None:
    first, _ = load_engine(options(llama))
    expected = generate(options(llama), prompt_len=9, max_tokens=8)
    second, _ = load_engine(options(llama))
    greedy = SamplingParams(temperature=0.0, max_tokens=8)
    got: dict[int, list[int]] = {0: [], 1: []}
    first.add(0, Request((5,) * 9, greedy))
    second.add(1, Request((5,) * 9, greedy))
    while first.has_unfinished or second.has_unfinished:
        for output in first.step() + second.step():
            assert isinstance(output.output, TokenOutput)
            got[output.request_id] += output.output.token_ids
    assert got == {0: expected, 1: expected}


_CHECKED = tuple(range(1, 60))


@pytest.mark.parametrize(
    ("quantization", "loaded", "effect", "cost"),
    [
        ("auto", "none", "loaded without quantization", 0.2),
        ("int8", "int8", "worse responses", 0.2),
        pytest.param("int4", "int4", "worse responses", 0.3, marks=NEEDS_KERNELS),
    ],
)
def test_quantization_that_costs_too_much_is_logged_and_by_default_not_used(
    llama: Path, tmp_path: Path, quantization: Quantization, loaded: str, effect: str, cost: float
) -> None:
    asked = EngineOptions(
        llama,
        device="cpu",
        quantization=quantization,
        cache_dir=tmp_path,
        check_token_ids=_CHECKED,
        max_quantization_cost=-1.0,
    )
    with structlog.testing.capture_logs() as logs:
        model = load_model(asked)
    assert model.description["quantization"] == loaded
    (line,) = [entry for entry in logs if entry["event"] == "quantization_costs_too_much"]
    assert line["log_level"] == "warning"
    assert line["effect"] == effect
    assert line["perplexity"] == pytest.approx(line["perplexity_without"], rel=cost)


def test_quantization_within_its_bound_is_used_without_a_word(llama: Path, tmp_path: Path) -> None:
    asked = EngineOptions(llama, device="cpu", cache_dir=tmp_path, check_token_ids=_CHECKED)
    with structlog.testing.capture_logs() as logs:
        model = load_model(asked)
    assert model.description["quantization"] == "int8"
    assert not [entry for entry in logs if entry["event"] == "quantization_costs_too_much"]


def test_check_text_outside_the_vocabulary_is_not_used(llama: Path, tmp_path: Path) -> None:
    asked = EngineOptions(llama, device="cpu", cache_dir=tmp_path, check_token_ids=(10**6, 10**6))
    assert load_model(asked).quantization_loss is None


def test_int4_without_native_kernels_is_rejected(llama: Path) -> None:
    options = EngineOptions(llama, device="cpu", quantization="int4", cpu_level="none")
    with pytest.raises(ModelLoadError, match="quantization=int4 needs the native kernels"):
        load_model(options)


@pytest.mark.parametrize("method", ["int8", "int4"])
def test_quantization_on_a_gpu_is_rejected_in_one_line(method: Quantization) -> None:
    with pytest.raises(ModelLoadError, match=f"quantization={method} is supported only on CPUs"):
        check_quantization(method, torch.device("cuda"))
