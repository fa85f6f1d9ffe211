import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from torch import Tensor

from service.engine.load import EngineOptions, load_engine
from service.engine.quantized_checkpoint import QuantizedWeights, read_quantized_weights
from service.errors import ModelLoadError
from tests.service.engine.logits import logprobs_of
from tests.service.engine.models import CONFIGS, make_config, reference_logprobs, save_model
from tests.service.engine.quantized import (
    METHODS,
    add_tensors,
    change_config,
    compressed_tensors,
    fp8_per_channel,
    fp8_per_tensor,
    int8_per_channel,
    quantize_checkpoint,
)

TOKENS = (5, 17, 3, 96, 40, 8, 22, 61, 5)
_FP8_GROUP = {"type": "float", "strategy": "channel", "symmetric": True}


def options(path: Path) -> EngineOptions:
    return EngineOptions(
        path, device="cpu", dtype="float32", block_size=16, kv_cache_memory_bytes=2**24
    )


def rejection(path: Path) -> str:
    """Return the message, one line, with which a checkpoint is rejected."""
    with pytest.raises(ModelLoadError) as caught:
        load_engine(options(path))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module", params=["llama", "phi3", "granite"])
def any_family(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    model_type, fields = CONFIGS[request.param]
    return save_model(tmp_path_factory.mktemp("model"), make_config(model_type, **fields))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model_type, fields = CONFIGS["llama"]
    return save_model(tmp_path_factory.mktemp("llama"), make_config(model_type, **fields))


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "copy"))


@pytest.mark.parametrize("name", METHODS)
def test_quantized_weights_give_the_logits_of_the_float_weights_they_stand_for(
    name: str, any_family: Path, tmp_path: Path
) -> None:
    description, quantize = METHODS[name]
    path = Path(shutil.copytree(any_family, tmp_path / "quantized"))
    meant = Path(shutil.copytree(any_family, tmp_path / "meant"))
    quantize_checkpoint(path, quantize, meant)
    change_config(path, quantization_config=description)
    expected = reference_logprobs(meant)(TOKENS)
    torch.testing.assert_close(logprobs_of(options(path), TOKENS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["fp8 blocks", "compressed-tensors int8 with zero points"])
@pytest.mark.parametrize("family", ["deepseek_v3", "mixtral", "qwen3-moe"])
def test_experts_that_are_quantized_one_by_one_are_read(
    family: str, name: str, tmp_path: Path
) -> None:
    description, quantize = METHODS[name]
    model_type, fields = CONFIGS[family]
    path = save_model(tmp_path / "quantized", make_config(model_type, **fields))
    meant = Path(shutil.copytree(path, tmp_path / "meant"))
    quantize_checkpoint(path, quantize, meant)
    change_config(path, quantization_config=description)
    expected = reference_logprobs(meant)(TOKENS)
    torch.testing.assert_close(logprobs_of(options(path), TOKENS), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["quantization_config", "compression_config"])
def test_description_in_the_text_config_is_read(copy: Path, name: str) -> None:
    config = {"model_type": "gemma3", "text_config": {name: {"quant_method": "hqq"}}}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="quantized by hqq"):
        read_quantized_weights(copy)


@pytest.mark.parametrize(
    "content",
    [
        {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}},
        {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
    ],
)
def test_modelopt_file_is_read(copy: Path, content: dict[str, Any], tmp_path: Path) -> None:
    meant = Path(shutil.copytree(copy, tmp_path / "meant"))
    quantize_checkpoint(copy, fp8_per_tensor("weight_scale"), meant)
    (copy / "hf_quant_config.json").write_text(json.dumps(content))
    expected = reference_logprobs(meant)(TOKENS)
    torch.testing.assert_close(logprobs_of(options(copy), TOKENS), expected, atol=2e-4, rtol=1e-4)


def test_scales_of_a_quantized_cache_are_ignored_where_the_config_declares_it(copy: Path) -> None:
    quantize_checkpoint(copy, fp8_per_tensor("weight_scale"))
    scales = {
        f"model.layers.{layer}.self_attn.{name}": torch.tensor(0.02)
        for layer in range(3)
        for name in ("k_proj.k_scale", "v_proj.v_scale")
    }
    add_tensors(copy, **scales)
    description = {"quant_method": "modelopt", "quant_algo": "FP8"}
    change_config(copy, quantization_config=description)
    assert "k_proj.k_scale" in rejection(copy)
    change_config(copy, quantization_config=description | {"kv_cache_quant_algo": "FP8"})
    load_engine(options(copy))


@pytest.mark.parametrize(
    ("description", "named"),
    [
        (
            {"quant_method": "awq", "bits": 4, "version": "gemv"},
            "awq with 4 bits in the version gemv",
        ),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq with 3 bits"),
        (
            {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
            "gptq with 4 bits in the format marlin",
        ),
        (
            {"quant_method": "gptq", "bits": 4, "dynamic": {"-:q": {}}},
            "gptq with settings of single",
        ),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "nvfp4"}, "nvfp4"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "quip"}, "quip"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "quark"}, "quark"),
        ({"quant_method": "never-heard-of"}, "never-heard-of"),
        ({"bits": 4, "group_size": 64}, "mlx"),
        ({"something": 1}, "an unnamed method"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes in 4 bits"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes in 4 bits"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt NVFP4"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "modelopt MIXED_PRECISION"),
        ({"quant_method": "fp8", "weight_block_size": "wide"}, "fp8, with a description"),
        ({"quant_method": "fp8", "weight_block_size": [0, 1]}, "fp8, with a description"),
        ("fp8", "'fp8'"),
        (
            compressed_tensors({"num_bits": 3, "type": "int"}, format="pack-quantized"),
            "compressed-tensors pack-quantized",
        ),
        (
            compressed_tensors({"num_bits": 4, "type": "float"}, format="nvfp4-pack-quantized"),
            "compressed-tensors nvfp4-pack-quantized",
        ),
        (
            compressed_tensors(_FP8_GROUP, format="marlin-24"),
            "compressed-tensors marlin-24",
        ),
        (compressed_tensors(_FP8_GROUP), "compressed-tensors dense"),
        (
            compressed_tensors(
                _FP8_GROUP,
                format="float-quantized",
                sparsity_config={"format": "sparse-24-bitmask"},
            ),
            "compressed-tensors sparse-24-bitmask",
        ),
        (
            compressed_tensors(
                _FP8_GROUP,
                format="float-quantized",
                transform_config={"config_groups": {"R1": {"type": "hadamard"}}},
            ),
            "compressed-tensors with transforms",
        ),
    ],
)
def test_unsupported_method_is_rejected_by_name(description: Any, named: str, copy: Path) -> None:
    change_config(copy, quantization_config=description)
    assert f"is quantized by {named}" in rejection(copy)


@pytest.mark.parametrize(
    ("file", "named"), [("quantize_config.json", "gptq"), ("quant_config.json", "awq")]
)
def test_own_file_of_a_quantizer_without_its_settings_is_rejected(
    file: str, named: str, copy: Path
) -> None:
    (copy / file).write_text("{}")
    assert f"is quantized by {named} with None bits" in rejection(copy)


@pytest.mark.parametrize("method", ["never-heard-of", "mxfp4"])
def test_unsupported_method_is_rejected_on_the_transformers_backend(
    method: str, tmp_path: Path
) -> None:
    model_type, fields = CONFIGS["granite"]
    path = save_model(tmp_path, make_config(model_type, **fields))
    change_config(path, quantization_config={"quant_method": method})
    assert f"is quantized by {method}" in rejection(path)


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize(
    "quantize", [fp8_per_channel, int8_per_channel, METHODS["bitsandbytes int8"][1]]
)
def test_quantized_weights_without_a_description_are_rejected_by_a_tensors_name(
    family: str, quantize: Any, tmp_path: Path
) -> None:
    model_type, fields = CONFIGS[family]
    path = save_model(tmp_path, make_config(model_type, **fields))
    quantize_checkpoint(path, quantize)
    assert "_proj." in rejection(path)


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize(
    "name",
    [
        "mlp.up_proj.weight_scale",
        "mlp.up_proj.weight_scale_inv",
        "mlp.up_proj.weight_scale_2",
        "mlp.up_proj.pre_quant_scale",
        "mlp.up_proj.SCB",
        "mlp.up_proj.qweight",
        "mlp.up_proj.qzeros",
        "mlp.up_proj.scales",
        "mlp.up_proj.g_idx",
        "mlp.up_proj.weight_packed",
        "mlp.up_proj.weight_zero_point",
        "mlp.up_proj.weight.absmax",
        "mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
        "mlp.up_proj.lora_A.weight",
        "mlp.up_proj_blocks",
        "self_attn.k_scale",
    ],
)
def test_unread_tensor_of_a_quantization_is_rejected_by_name(
    family: str, name: str, tmp_path: Path
) -> None:
    model_type, fields = CONFIGS[family]
    path = save_model(tmp_path, make_config(model_type, **fields))
    add_tensors(path, **{f"model.layers.1.{name}": torch.ones(3)})
    assert f"model.layers.1.{name}" in rejection(path)


def test_tensors_of_other_parts_are_ignored_on_the_transformers_backend(tmp_path: Path) -> None:
    model_type, fields = CONFIGS["granite"]
    path = save_model(tmp_path, make_config(model_type, **fields))
    add_tensors(path, **{"model.vision_tower.std_scale": torch.ones(3)})
    with capture_logs() as logs:
        load_engine(options(path))
    assert "checkpoint_tensors_not_used" not in {entry["event"] for entry in logs}
    add_tensors(path, **{"model.layers.0.self_attn.q_proj.bias": torch.ones(3)})
    with capture_logs() as logs:
        load_engine(options(path))
    assert [entry["first"] for entry in logs if entry["log_level"] == "warning"] == [
        "model.layers.0.self_attn.q_proj.bias"
    ]


def test_packed_weights_are_named_before_those_that_are_missing(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    packed = weights.pop("model.layers.0.self_attn.q_proj.weight")
    weights["model.layers.0.self_attn.q_proj.qweight"] = packed.to(torch.int32)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert "has model.layers.0.self_attn.q_proj.qweight" in rejection(copy)


def _spoilt(change: dict[str, Tensor]) -> Any:
    def quantize(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        tensors, meant = int8_per_channel(weight)
        return tensors | change, meant

    return quantize


@pytest.mark.parametrize(
    "change",
    [
        {"weight_scale": torch.ones(7)},
        {"weight_scale": torch.ones(2, 2)},
        {"weight_scale": torch.ones((), dtype=torch.int8)},
        {"weight": torch.ones(32, 32, dtype=torch.uint8)},
        {"weight": torch.ones(32, 32, dtype=torch.int32)},
        {"weight": torch.ones(32, 32).to(torch.float8_e4m3fn)},
        {"weight": torch.ones(32, 32)},
        {"weight_zero_point": torch.ones(3, dtype=torch.int8)},
        {"weight_g_idx": torch.ones(32, dtype=torch.int32)},
    ],
)
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_tensors_that_contradict_the_description_are_rejected_by_name(
    family: str, change: dict[str, Tensor], tmp_path: Path
) -> None:
    model_type, fields = CONFIGS[family]
    copy = save_model(tmp_path, make_config(model_type, **fields))
    quantize_checkpoint(copy, _spoilt(change))
    description = compressed_tensors({"type": "int", "strategy": "channel"}, format="int-quantized")
    change_config(copy, quantization_config=description)
    assert "_proj." in rejection(copy)


def test_weights_in_gpu_order_are_rejected(copy: Path) -> None:
    description, quantize = METHODS["bitsandbytes int8"]
    quantize_checkpoint(copy, quantize)
    name = "model.layers.0.self_attn.q_proj.weight_format"
    add_tensors(copy, **{name: torch.tensor(1, dtype=torch.uint8)})
    change_config(copy, quantization_config=description)
    assert f"{name} is 1" in rejection(copy)


@pytest.mark.parametrize(
    "description",
    [
        None,
        {},
        {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
        {"quant_method": "modelopt", "quant_algo": None},
        {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}},
    ],
)
def test_plain_weights_have_no_quantization(description: Any, copy: Path) -> None:
    change_config(copy, quantization_config=description)
    assert read_quantized_weights(copy) is None
    load_engine(options(copy))


def test_two_methods_at_once_are_rejected(copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": "fp8"})
    (copy / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert "fp8 and modelopt FP8" in rejection(copy)


def test_description_is_read_completely(copy: Path) -> None:
    change_config(copy, quantization_config=METHODS["fp8 blocks"][0])
    assert read_quantized_weights(copy) == QuantizedWeights(
        "fp8", "float8", ("weight_scale_inv", "weight_scale"), (16, 24)
    )
