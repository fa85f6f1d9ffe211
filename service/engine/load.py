"""From a checkpoint on disk to an engine core: device, dtype, weights, cache size, warm-up."""

import inspect
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import structlog
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from service.engine.attention import PagedAttention, ShapeProbe, register
from service.engine.block_pool import BlockPool
from service.engine.core import EngineCore
from service.engine.kv_store import KVShape, KVStore
from service.engine.memory import available_memory
from service.engine.model_runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.errors import ModelLoadError
from service.types import Request, SamplingParams

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]

# The share of the memory free after loading that the cache may take where nobody said how much.
_CACHE_SHARE = 0.5

# Layer kinds, as transformers' configs name them, whose whole state is keys and values by position.
_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "attention"}

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_names = (f"chatrpc-{n}" for n in itertools.count())

log = structlog.get_logger(__name__)

transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # a log is no terminal


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is made from.

    `max_model_len` None: the model's own. `kv_cache_memory_bytes` None: as much as the sequences
    could use, within half of the memory that is free. `prefix_caching`: share what is cached.
    `num_speculative_tokens`: the longest draft of a sequence; 0 for none.
    """

    path: Path
    device: Device = "auto"
    dtype: DType = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    block_size: int = 16
    kv_cache_memory_bytes: int | None = None
    prefix_caching: bool = True
    num_speculative_tokens: int = 8


def load_engine(options: EngineOptions) -> tuple[EngineCore, int]:
    """Load the model and make it ready to generate.

    Returns:
        The core, warmed up, and the longest sequence it serves.

    Raises:
        ModelLoadError: the model cannot be read, is of a kind that is not served, or does not fit.
    """
    device = _resolve_device(options.device)
    model = _load_model(options.path, device, _resolve_dtype(options.dtype, device))
    shapes = _probe(model)
    max_model_len = _resolve_max_model_len(options, model)
    num_blocks = _count_blocks(options, shapes, max_model_len, device)
    max_model_len = min(max_model_len, num_blocks * options.block_size)
    num_cached_tokens = num_blocks * options.block_size
    try:
        attention = PagedAttention(KVStore(shapes, num_blocks, options.block_size, device))
        model.set_attn_implementation(register(next(_names), attention))
        pool = BlockPool(num_blocks, options.block_size, has_prefix_caching=options.prefix_caching)
        scheduler = Scheduler(
            pool,
            options.max_num_seqs,
            options.max_num_batched_tokens,
            options.num_speculative_tokens,
        )
        runner = ModelRunner(model, attention, options.block_size)
        core = EngineCore(scheduler, runner, max_model_len, max_failed_steps=1)
        _warm_up(core, min(8, max_model_len - 1))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelLoadError(
            f"The model and a KV cache of {num_cached_tokens} tokens do not fit into the memory: "
            f"{_first_line(error)}"
        ) from error
    log.info(
        "model loaded",
        device=str(device),
        dtype=str(model.dtype).removeprefix("torch."),
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


def _resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 wherever the hardware multiplies it natively, float32 elsewhere."""
    if dtype != "auto":
        return _DTYPES[dtype]
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.bfloat16 if is_native else torch.float32


def _load_model(path: Path, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,  # makes it a pair
        )
    except Exception as error:  # whatever a file may hold, transformers has a different error for
        raise ModelLoadError(
            f"The model at {path} cannot be loaded: {_first_line(error)}"
        ) from error
    model: PreTrainedModel
    model, report = loaded
    if missing := report["missing_keys"]:  # transformers only warns, and makes up random numbers
        raise ModelLoadError(
            f"The model at {path} is not complete: it has no {min(missing)}, one of {len(missing)} "
            "tensors that are missing."
        )
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise ModelLoadError(f"{type(model).__name__} takes no position ids and is not served.")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    kinds -= _ATTENTION_LAYERS
    if kinds:
        raise ModelLoadError(
            f"{type(model).__name__} has layers that are not served: {', '.join(sorted(kinds))}."
        )
    return model


@torch.inference_mode()
def _probe(model: PreTrainedModel) -> list[KVShape]:
    """The keys and values of each layer, learnt by running one token through the model."""
    probe = ShapeProbe()
    try:
        model.set_attn_implementation(register(next(_names), probe))
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        model(input_ids=token, position_ids=token, use_cache=False)
    except ModelLoadError:
        raise
    except Exception as error:  # the model's own code, called in a way that it may not expect
        raise ModelLoadError(
            f"{type(model).__name__} is not served: {_first_line(error)}"
        ) from error
    if sorted(probe.shapes) != list(range(model.config.get_text_config().num_hidden_layers)):
        raise ModelLoadError(
            f"{type(model).__name__} is not served: not all of its layers attend through "
            "transformers' attention interface."
        )
    if any(
        probe.windows[layer] is None for layer in _sliding_layers(model.config.get_text_config())
    ):
        raise ModelLoadError(
            f"{type(model).__name__} is not served: its sliding window is known to its mask alone."
        )
    return [probe.shapes[layer] for layer in sorted(probe.shapes)]


def _sliding_layers(config: PreTrainedConfig) -> list[int]:
    """The layers that see a sliding window, by the model's config."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        has_window = getattr(config, "sliding_window", None) is not None
        return list(range(config.num_hidden_layers)) if has_window else []
    return [layer for layer, kind in enumerate(kinds) if kind == "sliding_attention"]


def _resolve_max_model_len(options: EngineOptions, model: PreTrainedModel) -> int:
    own = _own_max_model_len(model.config.get_text_config())
    if options.max_model_len is None:
        if own is None:
            raise ModelLoadError("The model does not say its context length: set max_model_len.")
        return own
    if own is not None and options.max_model_len > own:
        raise ModelLoadError(
            f"max_model_len={options.max_model_len} is more than the model's own {own}."
        )
    return options.max_model_len


def _own_max_model_len(config: PreTrainedConfig) -> int | None:
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
        budget = int(available_memory(device) * _CACHE_SHARE)
    if budget < 2 * bytes_per_block:
        raise ModelLoadError(
            f"The KV cache's budget of {budget} bytes is too small: it must hold at least 2 blocks "
            f"of {bytes_per_block} bytes."
        )
    num_blocks = min(budget // bytes_per_block, blocks_per_sequence * options.max_num_seqs)
    if num_blocks < blocks_per_sequence:
        log.warning(
            "KV cache smaller than the context",
            max_model_len=max_model_len,
            kv_cache_tokens=num_blocks * options.block_size,
        )
    return num_blocks


def _warm_up(core: EngineCore, prompt_len: int) -> None:
    """Run one short sequence: the first caller shall not pay for what torch sets up lazily."""
    core.add(-1, Request((0,) * prompt_len, SamplingParams(max_tokens=4)))
    while core.has_unfinished:
        core.step()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
