"""The service's options, and `vllm_args`, as arguments of vLLM."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from chatrpc_process.errors import ConfigError
from service.config import ServiceSettings
from service.domain.engine_settings import EngineSettings
from service.engines import make_engine
from service.vllm_engine.arguments import OPTIONS, engine_arguments, settings_arguments

GUIDANCE = {"structured_outputs_config": {"backend": "guidance"}}


def test_every_option_of_an_engine_has_a_decision() -> None:
    assert {each.name for each in fields(EngineSettings)} == OPTIONS


def test_options_that_are_not_set_leave_the_defaults_of_vllm() -> None:
    assert settings_arguments(EngineSettings()) == GUIDANCE
    assert settings_arguments(ServiceSettings.load([]).engine_settings) == GUIDANCE


@pytest.mark.parametrize(
    ("option", "value", "argument", "expected"),
    [
        ("dtype", "float16", "dtype", "float16"),
        ("max_model_len", 100, "max_model_len", 100),
        ("max_num_seqs", 7, "max_num_seqs", 7),
        ("max_num_batched_tokens", 70, "max_num_batched_tokens", 70),
        ("block_size", 64, "block_size", 64),
        ("kv_cache_memory_bytes", 2**30, "kv_cache_memory_bytes", 2**30),
        ("gpu_memory_utilization", 0.5, "gpu_memory_utilization", 0.5),
        ("prefix_caching", False, "enable_prefix_caching", False),
        (
            "num_speculative_tokens",
            4,
            "speculative_config",
            {"method": "ngram", "num_speculative_tokens": 4},
        ),
    ],
)
def test_option_sets_its_argument(option: str, value: Any, argument: str, expected: Any) -> None:
    settings = EngineSettings(**{option: value})
    assert settings_arguments(settings) == {**GUIDANCE, argument: expected}


def test_time_budget_is_rejected() -> None:
    with pytest.raises(ConfigError, match="max_step_ms is an option of the engine local"):
        settings_arguments(EngineSettings(max_step_ms=100))


@pytest.mark.parametrize(
    "settings",
    [{"quantization": "none"}, {"num_speculative_tokens": 0}, {"step_timeout_s": 1.0}],
)
def test_option_without_an_argument_sets_none(settings: dict[str, Any]) -> None:
    assert settings_arguments(EngineSettings(**settings)) == GUIDANCE


def test_vllm_args_are_passed_through() -> None:
    args = {
        "tensor_parallel_size": 2,
        "structured_outputs_config": {"disable_any_whitespace": True},
    }
    found = settings_arguments(EngineSettings(vllm_args=args, max_num_seqs=4))
    assert found == {
        "max_num_seqs": 4,
        "tensor_parallel_size": 2,
        "structured_outputs_config": {"disable_any_whitespace": True, "backend": "guidance"},
    }
    assert engine_arguments(found, Path("/models/x")) == {
        **found,
        "model": "/models/x",
        "runner": "generate",
        "generation_config": "vllm",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "int8"}, "quantization=int8 is a method of the engine local."),
        ({"quantization": "int4"}, "quantization=int4 is a method of the engine local."),
        ({"vllm_args": {"model": "x"}}, "vllm_args.model cannot be set: the option `model`"),
        (
            {"vllm_args": {"max_num_queued_reqs": 1}},
            "vllm_args.max_num_queued_reqs cannot be set: the option `max_queue_size`",
        ),
        (
            {"vllm_args": {"max_num_seqs": 1}, "max_num_seqs": 1},
            "vllm_args.max_num_seqs is set by an option of the service, too.",
        ),
        (
            {"vllm_args": {"spec_method": "ngram"}, "num_speculative_tokens": 2},
            "vllm_args.spec_method is set by the option `speculation`, too.",
        ),
        (
            {"vllm_args": {"structured_outputs_config": {"backend": "xgrammar"}}},
            "vllm_args.structured_outputs_config must be an object, and its backend 'guidance'",
        ),
        (
            {"vllm_args": {"structured_outputs_config": "guidance"}},
            "vllm_args.structured_outputs_config must be an object",
        ),
    ],
)
def test_contradiction_is_rejected_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_arguments(EngineSettings(**settings))
    assert str(caught.value).startswith(message)


def test_vllm_args_come_from_command_line_environment_and_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = {"tensor_parallel_size": 2, "speculative_config": {"method": "ngram"}}
    text = '{"tensor_parallel_size": 2, "speculative_config": {"method": "ngram"}}'
    assert ServiceSettings.load(["--vllm-args", text]).engine_settings.vllm_args == expected
    file = tmp_path / "options.toml"
    file.write_text(
        "[vllm_args]\ntensor_parallel_size = 2\n[vllm_args.speculative_config]\nmethod = 'ngram'\n"
    )
    assert ServiceSettings.load(["--config", str(file)]).vllm_args == expected
    monkeypatch.setenv("CHATRPC_SERVICE_VLLM_ARGS", text)
    assert ServiceSettings.load([]).vllm_args == expected


@pytest.mark.parametrize("text", ["[1]", "no json", "1"])
def test_vllm_args_must_be_an_object(text: str) -> None:
    with pytest.raises(ConfigError, match="vllm_args"):
        ServiceSettings.load(["--vllm-args", text])


def test_vllm_args_are_rejected_with_another_engine() -> None:
    settings = EngineSettings(device="cuda", vllm_args={"seed": 1})
    with pytest.raises(ConfigError, match="vllm_args are for the engine vllm"):
        make_engine("local", settings)


def test_type_of_the_cache_is_rejected() -> None:
    with pytest.raises(ConfigError, match="kv_cache_dtype is an option of the engine local"):
        settings_arguments(EngineSettings(kv_cache_dtype="bfloat16"))


def test_prefix_cache_on_disk_is_rejected() -> None:
    with pytest.raises(ConfigError, match="prefix_cache_dir is an option of the engine local"):
        settings_arguments(EngineSettings(prefix_cache_dir=Path("/cache")))
