"""The size of the KV cache, from the memory that the model leaves for it."""

import structlog
import torch

from service.domain.engine import Request
from service.domain.engine_settings import EngineSettings
from service.domain.sampling import SamplingParams
from service.engine.batch import Batch, ScheduledSequence
from service.engine.host_resources import available_memory
from service.engine.limits import EngineLimits
from service.engine.model_runner import LoadedModel, ModelRunner
from service.engine.sequence import Sequence
from service.errors import ModelLoadError

# The default on a CPU fits this number of sequences of full length, but is at least 1 GiB, and at
# most this share of the memory that is free after loading. After some time all of it is used,
# because the prefix cache keeps blocks until they are needed.
_FULL_SEQUENCES = 4
_MIN_CACHE_BYTES = 2**30
_MAX_CACHE_SHARE = 0.5

# vLLM uses 0.92 of a GPU's memory. Steps with long contexts allocate more here.
_GPU_MEMORY_UTILIZATION = 0.9

log = structlog.get_logger(__name__)


def count_blocks(
    settings: EngineSettings,
    limits: EngineLimits,
    model: LoadedModel,
    max_model_len: int,
    device: torch.device,
) -> int:
    """Return the number of blocks of the cache.

    They fit into `kv_cache_memory_bytes` or, if that is not set, into a share of the memory that
    the model leaves. There are at most as many as `max_num_seqs` sequences of full length need.

    Args:
        model: The model, whose weights are in the memory.

    Raises:
        ModelLoadError: Fewer than two blocks fit.
        MemoryError, torch.OutOfMemoryError: A step of the model does not fit into the memory.
    """
    bytes_per_block = limits.block_size * model.kv_bytes_per_token
    blocks_per_sequence = -(-max_model_len // limits.block_size)
    budget = settings.kv_cache_memory_bytes
    if budget is None and device.type == "cuda":
        budget = _budget_on_cuda(settings, limits, model, max_model_len, device)
    elif budget is None:
        default = max(_FULL_SEQUENCES * blocks_per_sequence * bytes_per_block, _MIN_CACHE_BYTES)
        budget = min(default, int(available_memory() * _MAX_CACHE_SHARE))
    if budget < 2 * bytes_per_block:
        raise ModelLoadError(
            f"The KV cache's budget of {max(0, budget)} bytes is too small: the minimum is 2 "
            f"blocks of {bytes_per_block} bytes."
        )
    num_blocks = min(budget // bytes_per_block, blocks_per_sequence * limits.max_num_seqs)
    if num_blocks < blocks_per_sequence:
        log.warning(
            "kv_cache_smaller_than_context",
            max_model_len=max_model_len,
            kv_cache_tokens=num_blocks * limits.block_size,
        )
    return num_blocks


def _budget_on_cuda(
    settings: EngineSettings,
    limits: EngineLimits,
    model: LoadedModel,
    max_model_len: int,
    device: torch.device,
) -> int:
    """Return the share of the device's memory that the engine may use, without the memory that is
    in use and without the memory that a step allocates."""
    step_bytes = _measure_step(limits, model, max_model_len, device)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    share = settings.gpu_memory_utilization or _GPU_MEMORY_UTILIZATION
    log.info("gpu_memory_measured", total_bytes=total, free_bytes=free, step_bytes=step_bytes)
    return int(total * share) - (total - free) - step_bytes


def _measure_step(
    limits: EngineLimits, model: LoadedModel, max_model_len: int, device: torch.device
) -> int:
    """Run a step with the maximum number of tokens and sequences. Return the bytes that it
    allocates at most."""
    num_seqs = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    num_tokens = min(limits.max_num_batched_tokens // num_seqs, max_model_len - 1)
    num_blocks = -(-num_tokens // limits.block_size)
    runner = ModelRunner(model.finish(num_blocks, limits.block_size, max_model_len))
    # These options need the most memory for a row.
    sampling = SamplingParams(top_p=0.9, presence_penalty=1.0)
    request = Request((0,) * num_tokens, sampling, num_logprobs=1)
    scheduled = []
    for index in range(num_seqs):
        sequence = Sequence(-1, request, max_model_len, index)
        sequence.block_ids = list(range(num_blocks))  # the same for all: their content is not used
        scheduled.append(ScheduledSequence(sequence, num_tokens, is_sampled=True))
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    runner.run(Batch(tuple(scheduled)))
    return torch.cuda.max_memory_allocated(device) - before
