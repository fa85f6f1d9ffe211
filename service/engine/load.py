"""Loads a checkpoint into an engine core: device, precision, weights, cache size, warm-up."""

import ctypes
import math
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch

from service.domain.engine import Request
from service.domain.engine_settings import (
    CpuLevel,
    Device,
    DType,
    EngineSettings,
    KVCacheDType,
    Quantization,
)
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import DeviceLost, EngineCore
from service.engine.decoder.architecture import Architecture, read_architecture
from service.engine.decoder.decoder import Decoder
from service.engine.decoder.load import load_decoder
from service.engine.decoder.rope import is_served
from service.engine.host_resources import available_cpus
from service.engine.kv_cache_size import count_blocks
from service.engine.limits import EngineLimits
from service.engine.load_disk_cache import load_disk_cache, start_digest
from service.engine.model_config import read_config
from service.engine.model_runner import LoadedModel, ModelRunner
from service.engine.native.build import check_cpu_level, load_library
from service.engine.native.compiler import Unavailable
from service.engine.quantized_checkpoint import StoredQuantization, read_quantized_weights
from service.engine.scheduler import Scheduler
from service.errors import ModelLoadError, first_line

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_KV_CACHE_DTYPES = {**_DTYPES, "int8": torch.int8}

# Multimodal models whose language model can be used by itself. Others attend to a prompt in both
# directions (PaliGemma), or change layers of the language model.
_USABLE_LANGUAGE_MODELS = {
    "gemma3",
    "mistral3",
    "llava",
    "llava_next",
    "llava_onevision",
    "idefics3",
    "smolvlm",
    "internvl",
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class EngineOptions(EngineSettings):
    """The operator's options, the model to load, and limits of this engine.

    Attributes:
        path: The model's directory.
        check_token_ids: The token ids of a short text. When the model is loaded, the increase of
            its loss by int8 or int4 is measured on this text. Empty means that it is not measured.
        max_quantization_cost: Maximum increase of the loss by int8 or int4, in nats per token. If
            it is larger, quantization "auto" loads the model without int8, and "int8" and "int4"
            log a warning. The default is an increase of perplexity by 10 %. Models that suit int8
            have less than 4 %.
    """

    path: Path
    check_token_ids: tuple[int, ...] = ()
    max_quantization_cost: float = 0.1


def load_model(options: EngineOptions) -> LoadedModel:
    """Load the weights of a model, without a KV cache.

    Raises:
        ModelLoadError: The model cannot be read, or is not supported.
    """
    device = _choose_device(options)
    stored = read_quantized_weights(options.path)
    library = _load_library(options, device)
    return _load_model(options, _read_config(options), stored, device, library)


def load_engine(options: EngineOptions) -> tuple[EngineCore, int]:
    """Load a model and prepare it to generate.

    Returns:
        The core, warmed up, and the maximum length of a sequence in tokens.

    Raises:
        ModelLoadError: The model cannot be read, is not supported, or does not fit into memory.
    """
    torch.set_num_threads(options.num_threads or available_cpus())
    device = _choose_device(options)
    check_memory_utilization(options.gpu_memory_utilization, device)
    try:
        return _load_on_device(options, device)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(
            f"The model, its KV cache and a step do not fit into the memory: {first_line(error)}"
        ) from error
    except (DeviceLost, torch.AcceleratorError) as error:
        raise ModelLoadError(f"The device {device} failed: {first_line(error)}") from error


def _choose_device(options: EngineOptions) -> torch.device:
    """Return the device for the model.

    Raises:
        ModelLoadError: There is no such device, or it does not support the precision or the level
            of CPU instructions in `options`.
    """
    device = _resolve_device(options.device)
    check_quantization(options.quantization, device)
    check_kv_cache_dtype(options.kv_cache_dtype, device)
    _check_cpu_level(options.cpu_level, device)
    return device


def _check_cpu_level(level: CpuLevel, device: torch.device) -> None:
    if level == "auto":
        return
    if device.type != "cpu":
        raise ModelLoadError(f"The option cpu_level needs a CPU, and the device is {device}.")
    if level != "none":
        try:
            check_cpu_level(level)
        except Unavailable as error:
            raise ModelLoadError(f"cpu_level={level}: {error}.") from error


def _load_on_device(options: EngineOptions, device: torch.device) -> tuple[EngineCore, int]:
    digest = start_digest(options, options.path)
    stored = read_quantized_weights(options.path)
    config = _read_config(options)
    library = _load_library(options, device)
    model = _load_model(options, config, stored, device, library)
    max_model_len = _resolve_max_model_len(options, config)
    limits = EngineLimits.of(options, device.type)
    num_blocks = count_blocks(options, limits, model, max_model_len, device)
    num_cached_tokens = num_blocks * limits.block_size
    max_model_len = min(max_model_len, num_cached_tokens)
    # The model allocates the cache first, which raises MemoryError for too many blocks.
    finished = model.finish(num_blocks, limits.block_size, max_model_len)
    runner = ModelRunner(finished, library)
    pool = BlockPool(num_blocks, limits.block_size, has_prefix_caching=options.prefix_caching)
    make_scheduler = partial(
        Scheduler,
        pool,
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        limits.num_speculative_tokens,
        limits.max_step_ms / 1000,
    )
    core = EngineCore(make_scheduler(), runner, max_model_len, max_failed_steps=1)
    disk_cache = load_disk_cache(
        options, digest, config.vocab_size, max_model_len, model, finished, runner, pool
    )
    _warm_up(core, min(8, max_model_len - 1))
    log.info(
        "model_loaded",
        device=str(device),
        **model.description,
        max_model_len=max_model_len,
        kv_cache_tokens=num_cached_tokens,
        kv_cache_bytes=num_cached_tokens * model.kv_bytes_per_token,
        **asdict(limits),
    )
    # A scheduler counts preemptions, drafts and cache hits, and the warm-up is not counted.
    core = EngineCore(
        make_scheduler(disk_cache=disk_cache),
        runner,
        max_model_len,
        is_batch_invariant=isinstance(finished, Decoder) and finished.is_batch_invariant,
        quantization=model.quantization,
    )
    return core, max_model_len


def _resolve_device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("The device is set to cuda, but torch finds no CUDA device.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def check_quantization(quantization: Quantization, device: torch.device) -> None:
    """Check that a quantization is supported on a device.

    Raises:
        ModelLoadError: It is not supported.
    """
    if quantization in {"int8", "int4"} and device.type != "cpu":
        raise ModelLoadError(
            f"quantization={quantization} is supported only on CPUs, and the device is "
            f"{device.type}."
        )


def check_kv_cache_dtype(kv_cache_dtype: KVCacheDType, device: torch.device) -> None:
    """Check that a type of the KV cache is supported on a device.

    Raises:
        ModelLoadError: It is not supported.
    """
    if kv_cache_dtype == "int8" and device.type != "cpu":
        raise ModelLoadError(
            f"kv_cache_dtype=int8 is supported only on CPUs, and the device is {device.type}."
        )


def check_memory_utilization(utilization: float | None, device: torch.device) -> None:
    """Check that `gpu_memory_utilization` is set only for a GPU.

    Raises:
        ModelLoadError: It is set for another device.
    """
    if utilization is not None and device.type != "cuda":
        raise ModelLoadError(
            f"gpu_memory_utilization is set, and the device is {device.type}, not cuda."
        )


def _resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Return the torch type. "auto" is bfloat16 if the hardware supports it, else float32."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if is_native else torch.float32


def _read_config(options: EngineOptions) -> Any:
    path = options.path
    try:
        return read_config(path, options.cache_dir)
    except Exception as error:  # transformers raises many kinds of errors for invalid files
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {first_line(error)}"
        ) from error


def _load_library(options: EngineOptions, device: torch.device) -> ctypes.CDLL | None:
    return load_library(options.cache_dir, options.cpu_level) if device.type == "cpu" else None


def _load_model(
    options: EngineOptions,
    config: Any,
    stored: StoredQuantization | None,
    device: torch.device,
    library: ctypes.CDLL | None,
) -> LoadedModel:
    """Load the model with the native decoder if it supports it, else with transformers."""
    dtype = _resolve_dtype(options.dtype, device)
    architecture = read_architecture(config)
    if architecture is not None and is_served(config):
        _check_parts(options.path, config)
        return _load_decoder(options, config, architecture, stored, device, dtype, library)
    if options.quantization in {"int8", "int4"}:
        raise ModelLoadError(
            f"quantization={options.quantization} is not supported for a model of the type "
            f"{config.model_type}."
        )
    if options.kv_cache_dtype != "auto":
        raise ModelLoadError(
            f"kv_cache_dtype={options.kv_cache_dtype} is not supported for a model of the type "
            f"{config.model_type}."
        )
    # Imported here, because importing transformers' model classes takes seconds.
    from service.engine.transformers_model import load_transformers_model  # noqa: PLC0415

    log.info("native_decoder_unavailable", model_type=config.model_type)
    return load_transformers_model(options.path, stored, device, dtype)


def _check_parts(path: Path, config: Any) -> None:
    """Check that the language model of a multimodal model can be used by itself.

    Raises:
        ModelLoadError: It cannot be used by itself.
    """
    whole = config.whole_model_type
    if whole == config.model_type:
        return
    if whole not in _USABLE_LANGUAGE_MODELS:
        raise ModelLoadError(
            f"The model at {path} is a multimodal model of the type {whole}. Its language model, "
            f"of the type {config.model_type}, is not supported by itself."
        )
    log.info("multimodal_model_served_for_text", model_type=whole)


def _load_decoder(
    options: EngineOptions,
    config: Any,
    architecture: Architecture,
    stored: StoredQuantization | None,
    device: torch.device,
    dtype: torch.dtype,
    library: ctypes.CDLL | None,
) -> LoadedModel:
    """Load the model with the native decoder, by default in int8 if that costs little.

    Weights that the checkpoint stores in groups of integers are kept by default.

    Raises:
        ModelLoadError: See `load_decoder`; or int4 is chosen, and there are no native kernels.
    """
    quantization = options.quantization
    keeps_groups = False
    if quantization == "auto":
        has_int8 = device.type == "cpu" and options.dtype == "auto"
        quantization = "int8" if has_int8 else "none"
        keeps_groups = has_int8 and stored is not None and stored.has_groups
    if quantization == "int4" and library is None:
        raise ModelLoadError("quantization=int4 needs the native kernels, which are not available.")
    load = partial(
        load_decoder,
        options.path,
        config,
        architecture,
        stored,
        dtype,
        _KV_CACHE_DTYPES.get(options.kv_cache_dtype, dtype),
        device=device,
        library=library,
    )
    if keeps_groups:
        return load(quantization=quantization, keeps_groups=True)
    model = load(quantization=quantization, check_token_ids=_checkable(options, architecture))
    loss = model.quantization_loss
    if (
        loss is None
        or loss.cost <= options.max_quantization_cost
        or not math.isfinite(loss.reference)
    ):
        return model
    is_rejected = options.quantization == "auto"
    quantized, reference = loss.perplexities
    log.warning(
        "quantization_costs_too_much",
        perplexity=round(quantized, 2),
        perplexity_without=round(reference, 2),
        effect="loaded without quantization" if is_rejected else "worse responses",
    )
    if not is_rejected:
        return model
    del model  # frees its memory before the model is loaded again
    return load(quantization="none")


def _checkable(options: EngineOptions, architecture: Architecture) -> tuple[int, ...]:
    """Return the part of the check text that fits the context; empty if it does not fit the
    vocabulary."""
    ids = options.check_token_ids[: options.max_model_len]
    return ids if all(i < architecture.vocab_size for i in ids) else ()


def _resolve_max_model_len(options: EngineOptions, config: Any) -> int:
    own = _own_max_model_len(config)
    if options.max_model_len is None:
        if own is None:
            raise ModelLoadError("The model's config has no context length: set max_model_len.")
        return own
    if own is not None and options.max_model_len > own:
        raise ModelLoadError(
            f"max_model_len={options.max_model_len} is more than the model's own {own}."
        )
    return options.max_model_len


def _own_max_model_len(config: Any) -> int | None:
    """Return the maximum number of positions of the model; None if its config has none.

    "longrope" embeddings have one set of frequencies for short sequences and one for long ones.
    Only short sequences are supported: transformers chooses for a whole batch by its longest
    sequence, so a short sequence would get the frequencies of a long one.
    """
    own: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    scopes = [rope] if "rope_type" in rope else rope.values()  # one, or one for each kind of layer
    switches = [
        scope["original_max_position_embeddings"]
        for scope in scopes
        if scope is not None and scope["rope_type"] == "longrope"
    ]
    return min([own, *switches]) if own is not None else None


def _warm_up(core: EngineCore, prompt_len: int) -> None:
    """Run one short sequence, so that torch's lazy initialization does not delay a request."""
    core.add(-1, Request((0,) * prompt_len, SamplingParams(max_tokens=4)))
    while core.has_unfinished:
        core.step()
