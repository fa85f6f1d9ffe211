"""From a checkpoint on disk to an engine core: device, precision, weights, cache size, warm-up."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch

from service.domain.engine import Request
from service.domain.engine_settings import Device, DType, EngineSettings, Quantization
from service.domain.sampling import SamplingParams
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.decoder.architecture import Architecture, read_architecture
from service.engine.decoder.load import load_decoder
from service.engine.decoder.rope import is_served
from service.engine.host_resources import available_cpus, available_memory
from service.engine.kv_store import KVShape
from service.engine.model_config import read_config
from service.engine.model_runner import LoadedModel, ModelRunner
from service.engine.native.build import load_library
from service.engine.quantized_checkpoint import QuantizedWeights, read_quantized_weights
from service.engine.scheduler import Scheduler
from service.errors import ModelLoadError, first_line

# The cache's size where nobody said how much: what so many sequences of full length fill, at least
# a gigabyte, at most this share of the memory that is free after loading. All of it is used sooner
# or later, by prefixes that are kept in case they come again.
_FULL_SEQUENCES = 4
_LEAST_CACHE_BYTES = 2**30
_CACHE_SHARE = 0.5

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Multimodal models whose language model reads text as it would by itself. Others see a prompt both
# ways (PaliGemma), or change their layers.
_SERVED_FOR_TEXT = {
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
        check_token_ids: A short text on which the loss by int8 is measured when the model is
            loaded. Empty means that it is not measured.
        max_quantization_cost: Maximum loss by int8 on that text, in nats a token. If it is larger,
            quantization "auto" loads the model without int8, and "int8" logs a warning. The default
            is 10 % of perplexity; models that suit int8 lose less than 4 %.
    """

    path: Path
    check_token_ids: tuple[int, ...] = ()
    max_quantization_cost: float = 0.1


def load_model(options: EngineOptions) -> LoadedModel:
    """The model by itself, its weights in memory, its cache still to be made.

    Raises:
        ModelLoadError: the model cannot be read or is of a kind that is not served.
    """
    device = _resolve_device(options.device)
    check_quantization(options.quantization, device)
    stored = read_quantized_weights(options.path)
    return _load_model(options, _read_config(options), stored, device)


def load_engine(options: EngineOptions) -> tuple[EngineCore, int]:
    """Load the model and make it ready to generate.

    Returns:
        The core, warmed up, and the longest sequence it serves.

    Raises:
        ModelLoadError: the model cannot be read, is of a kind that is not served, or does not fit.
    """
    torch.set_num_threads(options.num_threads or available_cpus())
    device = _resolve_device(options.device)
    check_quantization(options.quantization, device)
    stored = read_quantized_weights(options.path)
    config = _read_config(options)
    model = _load_model(options, config, stored, device)
    max_model_len = _resolve_max_model_len(options, config)
    num_blocks = _count_blocks(options, model.kv_shapes, max_model_len, device)
    num_cached_tokens = num_blocks * options.block_size
    max_model_len = min(max_model_len, num_cached_tokens)
    try:
        # The store first: it is what tells that so many blocks are too many.
        runner = ModelRunner(model.finish(num_blocks, options.block_size, max_model_len))
        pool = BlockPool(num_blocks, options.block_size, has_prefix_caching=options.prefix_caching)
        scheduler = Scheduler(
            pool,
            options.max_num_seqs,
            options.max_num_batched_tokens,
            options.num_speculative_tokens,
        )
        core = EngineCore(scheduler, runner, max_model_len, max_failed_steps=1)
        _warm_up(core, min(8, max_model_len - 1))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(
            f"The model and a KV cache of {num_cached_tokens} tokens do not fit into the memory: "
            f"{first_line(error)}"
        ) from error
    log.info(
        "model_loaded",
        device=str(device),
        **model.description,
        max_model_len=max_model_len,
        kv_cache_tokens=num_cached_tokens,
    )
    return EngineCore(scheduler, runner, max_model_len), max_model_len


def _resolve_device(device: Device) -> torch.device:
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelLoadError("device=cuda was asked for, but torch finds no CUDA device.")
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)


def check_quantization(quantization: Quantization, device: torch.device) -> None:
    """Raises ModelLoadError for a quantization that is not served on `device`."""
    if quantization == "int8" and device.type != "cpu":
        raise ModelLoadError(
            f"quantization=int8 is served on CPUs only, and the device is {device.type}."
        )


def _resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 wherever the hardware multiplies it natively, float32 elsewhere."""
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
    except Exception as error:  # whatever a file may hold, transformers has a different error for
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {first_line(error)}"
        ) from error


def _load_model(
    options: EngineOptions, config: Any, stored: QuantizedWeights | None, device: torch.device
) -> LoadedModel:
    """The model by the lean decoder if that serves it, else by transformers' own modules."""
    dtype = _resolve_dtype(options.dtype, device)
    architecture = read_architecture(config)
    if architecture is not None and is_served(config):
        _check_parts(options.path, config)
        return _load_decoder(options, config, architecture, stored, device, dtype)
    if options.quantization == "int8":
        raise ModelLoadError(
            f"A model of the type {config.model_type} is not served with quantization=int8."
        )
    # Imported here: it takes transformers' model classes seconds to load.
    from service.engine.transformers_model import load_transformers_model  # noqa: PLC0415

    log.info("native_decoder_unavailable", model_type=config.model_type)
    return load_transformers_model(options.path, stored, device, dtype)


def _check_parts(path: Path, config: Any) -> None:
    """Check that the language model of a model of several parts may be served by itself.

    Raises:
        ModelLoadError: it may not.
    """
    whole = config.whole_model_type
    if whole == config.model_type:
        return
    if whole not in _SERVED_FOR_TEXT:
        raise ModelLoadError(
            f"The model at {path} is a multimodal model of the type {whole}. Its language model, "
            f"of the type {config.model_type}, is not served by itself."
        )
    log.info("multimodal_model_served_for_text", model_type=whole)


def _load_decoder(
    options: EngineOptions,
    config: Any,
    architecture: Architecture,
    stored: QuantizedWeights | None,
    device: torch.device,
    dtype: torch.dtype,
) -> LoadedModel:
    """The model by the native decoder, in int8 if that is asked for or costs little."""
    quantization = options.quantization
    if quantization == "auto":
        has_int8 = device.type == "cpu" and options.dtype == "auto"
        quantization = "int8" if has_int8 else "none"
    library = load_library(options.cache_dir) if device.type == "cpu" else None
    load = partial(
        load_decoder,
        options.path,
        config,
        architecture,
        stored,
        dtype,
        device=device,
        library=library,
    )
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
    del model  # before its memory is needed
    return load(quantization="none")


def _checkable(options: EngineOptions, architecture: Architecture) -> tuple[int, ...]:
    """The text to check quantization on, as far as the model reads it."""
    ids = options.check_token_ids[: options.max_model_len]
    return ids if all(i < architecture.vocab_size for i in ids) else ()


def _resolve_max_model_len(options: EngineOptions, config: Any) -> int:
    own = _own_max_model_len(config)
    if options.max_model_len is None:
        if own is None:
            raise ModelLoadError("The model does not say its context length: set max_model_len.")
        return own
    if own is not None and options.max_model_len > own:
        raise ModelLoadError(
            f"max_model_len={options.max_model_len} is more than the model's own {own}."
        )
    return options.max_model_len


def _own_max_model_len(config: Any) -> int | None:
    """The longest sequence that the model's positions reach; None if it does not say.

    Long rotary embeddings ("longrope") have one set of frequencies for short sequences and one for
    long ones, and transformers chooses for a whole step by the longest in it: they are served up to
    where the choice begins, so that no sequence is computed as if it were longer.
    """
    own: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    scopes = [rope] if "rope_type" in rope else rope.values()  # for all layers or for each kind
    switches = [
        scope["original_max_position_embeddings"]
        for scope in scopes
        if scope is not None and scope["rope_type"] == "longrope"
    ]
    return min([own, *switches]) if own is not None else None


def _count_blocks(
    options: EngineOptions, shapes: list[KVShape], max_model_len: int, device: torch.device
) -> int:
    """How many blocks the memory budget pays for; no more than the sequences could ever fill."""
    bytes_per_block = options.block_size * sum(shape.bytes_per_token for shape in shapes)
    blocks_per_sequence = -(-max_model_len // options.block_size)
    budget = options.kv_cache_memory_bytes
    if budget is None:
        wanted = max(_FULL_SEQUENCES * blocks_per_sequence * bytes_per_block, _LEAST_CACHE_BYTES)
        budget = min(wanted, int(available_memory(device) * _CACHE_SHARE))
    if budget < 2 * bytes_per_block:
        raise ModelLoadError(
            f"The KV cache's budget of {budget} bytes is too small: it must hold at least 2 blocks "
            f"of {bytes_per_block} bytes."
        )
    num_blocks = min(budget // bytes_per_block, blocks_per_sequence * options.max_num_seqs)
    if num_blocks < blocks_per_sequence:
        log.warning(
            "kv_cache_smaller_than_context",
            max_model_len=max_model_len,
            kv_cache_tokens=num_blocks * options.block_size,
        )
    return num_blocks


def _warm_up(core: EngineCore, prompt_len: int) -> None:
    """Run one short sequence: the first caller shall not pay for what torch sets up lazily."""
    core.add(-1, Request((0,) * prompt_len, SamplingParams(max_tokens=4)))
    while core.has_unfinished:
        core.step()
