"""The arguments of vLLM: those that the service's options set, and those of `vllm_args`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatrpc_process.errors import ConfigError
from service.domain.engine_settings import EngineSettings

# The options that set vLLM's arguments of the same names.
_PASSED = (
    *("max_model_len", "max_num_seqs", "max_num_batched_tokens", "block_size"),
    *("kv_cache_memory_bytes", "gpu_memory_utilization"),
)
# The other options.
_OTHERS = (
    *("dtype", "quantization", "prefix_caching", "num_speculative_tokens"),  # see below
    *("device", "num_threads"),  # see launch.py
    *("cache_dir", "max_queue_size", "step_timeout_s", "vllm_args"),  # of the service
    "prefix_cache_disk_bytes",  # only with `prefix_cache_dir`
)
# The options that only the engine `local` has, with the rest of the error message.
_LOCAL: Mapping[str, str] = {
    "kv_cache_dtype": '. With engine=vllm, set vllm_args, for example {"kv_cache_dtype": "fp8"}.',
    "prefix_cache_dir": ". With engine=vllm, set vllm_args, for example "
    '{"kv_transfer_config": ...}.',
    "cpu_level": ", which has such kernels.",
    "max_step_ms": ": vLLM counts tokens only.",
}
# A test compares the names with those of `EngineSettings`, so that a new one needs a decision.
OPTIONS = frozenset((*_PASSED, *_OTHERS, *_LOCAL))
# The arguments that `vllm_args` must not set, with the reason.
_REJECTED: Mapping[str, str] = {
    "model": "the option `model` sets it",
    "model_weights": "the option `model` sets it",
    "served_model_name": "the option `served_model_name` sets it",
    "tokenizer": "the service tokenizes with the model's own tokenizer",
    "tokenizer_revision": "the service tokenizes with the model's own tokenizer",
    "tokenizer_mode": "the service tokenizes with the model's own tokenizer",
    "skip_tokenizer_init": "structured outputs need the tokenizer",
    "runner": "only text generation is served",
    "convert": "only text generation is served",
    "tokens_only": "the service sets what vLLM returns",
    "generation_config": "the service reads the defaults of sampling parameters",
    "override_generation_config": "the service reads the defaults of sampling parameters",
    "logprobs_mode": "log probabilities are those of the model, before any option",
    "reasoning_parser": "the service parses reasoning",
    "reasoning_config": "the service parses reasoning",
    "max_num_queued_reqs": "the option `max_queue_size` limits the queue",
    "max_num_queued_tokens": "the option `max_queue_size` limits the queue",
    "disable_log_stats": "the service's metrics need vLLM's statistics",
    "logging_config": "the options `log_level` and `log_format` set it",
    "log_level": "the options `log_level` and `log_format` set it",
    "log_config_file": "the options `log_level` and `log_format` set it",
    "shutdown_timeout": "the options `drain_delay_s` and `drain_timeout_s` set it",
}
_STRUCTURED = "structured_outputs_config"
# The service writes its grammars in the notation of this backend.
_BACKEND = "guidance"
_SPECULATIVE = ("speculative_config", "spec_method", "spec_model", "spec_tokens")


def settings_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Return the arguments of vLLM's `AsyncEngineArgs` for an operator's options.

    Options that are not set, and those of which `auto` is the value, set no argument, so that
    vLLM's own defaults apply.

    Raises:
        ConfigError: An option has no meaning for vLLM, `vllm_args` has an argument that it must not
            set, or an option and `vllm_args` set the same argument.
    """
    arguments = _from_options(settings)
    for name, value in settings.vllm_args.items():
        if name in _REJECTED:
            raise ConfigError(f"vllm_args.{name} cannot be set: {_REJECTED[name]}.")
        if name in arguments:
            raise ConfigError(f"vllm_args.{name} is set by an option of the service, too.")
        arguments[name] = value
    structured = arguments.get(_STRUCTURED, {})
    if not isinstance(structured, dict) or structured.get("backend", _BACKEND) != _BACKEND:
        raise ConfigError(
            f"vllm_args.{_STRUCTURED} must be an object, and its backend {_BACKEND!r}: the service "
            "writes grammars in the notation of this backend."
        )
    return {**arguments, _STRUCTURED: {**structured, "backend": _BACKEND}}


def engine_arguments(arguments: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """Return all arguments of vLLM's `AsyncEngineArgs`.

    Args:
        arguments: See `settings_arguments`.
        model: The directory of the model.
    """
    return {
        **arguments,
        "model": str(model),
        "runner": "generate",
        # No defaults of sampling parameters: a request has all values.
        "generation_config": "vllm",
    }


def _from_options(settings: EngineSettings) -> dict[str, Any]:
    _check_options(settings)
    arguments: dict[str, Any] = {}
    for option in _PASSED:
        if (value := getattr(settings, option)) is not None:
            arguments[option] = value
    if settings.dtype != "auto":
        arguments["dtype"] = settings.dtype
    if not settings.prefix_caching:
        arguments["enable_prefix_caching"] = False
    if settings.num_speculative_tokens:
        for name in _SPECULATIVE:
            if name in settings.vllm_args:
                raise ConfigError(f"vllm_args.{name} is set by the option `speculation`, too.")
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": settings.num_speculative_tokens,
        }
    return arguments


def _check_options(settings: EngineSettings) -> None:
    if settings.quantization in {"int8", "int4"}:
        raise ConfigError(
            f"quantization={settings.quantization} is a method of the engine local. With "
            "engine=vllm, serve a quantized checkpoint, or set vllm_args, for example "
            '{"quantization": "fp8"}.'
        )
    for option, rest in _LOCAL.items():
        if getattr(settings, option) not in {None, "auto"}:
            raise ConfigError(f"{option} is an option of the engine local{rest}")
