"""The operator's options for an engine, and the model that an engine loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from service.cache import default_cache_dir

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
CpuLevel = Literal["auto", "none", "amx", "bf16", "vnni", "avxvnni", "avx2", "i8mm", "dotprod"]
Quantization = Literal["auto", "none", "int8", "int4"]
KVCacheDType = Literal["auto", "float32", "bfloat16", "float16", "int8"]

# Maximum predicted duration of a step, in milliseconds, if none is set.
DEFAULT_MAX_STEP_MS = 200

# Maximum length of a draft, if drafts are enabled without a length.
DEFAULT_SPECULATIVE_TOKENS = 8

# Size of the prefix cache on disk, if there is a directory for it and no size: 10 GiB.
DEFAULT_PREFIX_CACHE_DISK_BYTES = 10 * 2**30


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The options of an engine that an operator can set, and their defaults.

    The service's options of the same names take their defaults from here. None means that the
    operator has not set the option, and the engine chooses. The defaults of this project's own
    engine depend on the device: see `service.engine.limits`.

    Attributes:
        device: The device that the model runs on. `auto` is a CUDA device if there is one, else the
            CPU.
        dtype: Type of weights and KV cache. `auto` is bfloat16 if the hardware multiplies it, else
            float32.
        quantization: Quantization of weights and activations. `int4` has weights in 4 bits, and
            activations and the head in int8. For the native decoder on a CPU, if `dtype` is `auto`,
            then `auto` is that of a checkpoint in groups of integers, or else int8. In all other
            cases it is none.
        kv_cache_dtype: Type of the keys and values in the KV cache. `auto` is that of the weights.
            `int8` has a scale for each token and head, and needs the native kernels of a CPU.
        cache_dir: Directory for files that are made once, such as compiled kernels.
        max_model_len: Maximum length of prompt and completion together, in tokens. None means the
            model's own.
        max_num_seqs: Maximum number of sequences that run at once.
        max_num_batched_tokens: Maximum number of tokens in one step; at least `max_num_seqs`.
        max_step_ms: Maximum predicted duration of a step that computes prompts while sequences
            decode, in milliseconds.
        max_queue_size: Maximum number of waiting sequences.
        block_size: Tokens in a block of the KV cache.
        kv_cache_memory_bytes: Size of the KV cache in bytes. None means, on a CPU, enough for a few
            sequences of maximum length, but at most half of the free memory.
        gpu_memory_utilization: The share of a GPU's memory, in (0, 1], for weights, steps and KV
            cache together. The KV cache gets the rest of it if `kv_cache_memory_bytes` is not set.
        num_threads: Number of CPU threads. None means one for each CPU that the process may use.
        cpu_level: The CPU instructions that the native kernels use, a level of
            `service.engine.native.levels`. `auto` means all that the CPU has, `none` torch's
            operators instead.
        prefix_caching: If True, requests share cached blocks of equal prompt prefixes.
        prefix_cache_dir: Directory that keeps blocks of prompt prefixes after a restart. None means
            that blocks are cached only in memory.
        prefix_cache_disk_bytes: Maximum size of the blocks in `prefix_cache_dir`, in bytes. None
            means `DEFAULT_PREFIX_CACHE_DISK_BYTES`.
        num_speculative_tokens: Maximum length of a draft, in tokens; 0 disables drafts.
        step_timeout_s: Maximum duration of one step, in seconds. If a step takes longer, the engine
            has failed.
        vllm_args: Arguments of the engine vllm, by the names of vLLM's `AsyncEngineArgs`.
    """

    device: Device = "auto"
    dtype: DType = "auto"
    quantization: Quantization = "auto"
    kv_cache_dtype: KVCacheDType = "auto"
    cache_dir: Path = field(default_factory=default_cache_dir)
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_step_ms: int | None = None
    max_queue_size: int = 256
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    gpu_memory_utilization: float | None = None
    num_threads: int | None = None
    cpu_level: CpuLevel = "auto"
    prefix_caching: bool = True
    prefix_cache_dir: Path | None = None
    prefix_cache_disk_bytes: int | None = None
    num_speculative_tokens: int | None = None
    step_timeout_s: float = 120.0
    vllm_args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """The model that an engine loads.

    Attributes:
        path: A directory with config.json, the tokenizer's files, and weights in safetensors; for
            an engine with `EngineCapabilities.reads_gguf` perhaps a linked GGUF file instead of
            these weights, with the index `service.gguf.index`.
        check_token_ids: Token ids of a short text. An engine may measure on it how much
            quantization increases the model's loss. Empty means that there is no such text.
    """

    path: Path
    check_token_ids: tuple[int, ...] = ()
