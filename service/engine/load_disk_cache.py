"""Opens the prefix cache on disk for a loaded model."""

from collections.abc import Callable
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from threading import Thread

from service.domain.engine import Request
from service.domain.engine_settings import DEFAULT_PREFIX_CACHE_DISK_BYTES, EngineSettings
from service.domain.sampling import SamplingParams
from service.engine.batch import Batch, ScheduledSequence
from service.engine.block_bytes import BlockBytes
from service.engine.block_files import BlockFiles
from service.engine.block_pool import BlockPool
from service.engine.core import Runner
from service.engine.disk_cache import MIN_TOKENS, DiskCache
from service.engine.model_runner import LoadedModel, Model
from service.engine.sequence import Sequence
from service.errors import ModelLoadError
from service.fingerprint import content_digest


def start_digest(settings: EngineSettings, path: Path) -> Callable[[], bytes] | None:
    """Start to compute `content_digest(path)` on another thread, for `load_disk_cache`.

    Large files take seconds, so this should be called before the model is loaded.

    Returns:
        A function that waits for the digest and returns it. It raises OSError as `content_digest`.
        None if `settings` names no directory for the prefix cache on disk.
    """
    if settings.prefix_cache_dir is None:
        return None
    digest: Future[bytes] = Future()

    def run() -> None:
        try:
            digest.set_result(content_digest(path))
        except BaseException as error:
            digest.set_exception(error)

    Thread(target=run, name="model-digest", daemon=True).start()
    return digest.result


def load_disk_cache(
    settings: EngineSettings,
    digest: Callable[[], bytes] | None,
    vocab_size: int,
    max_model_len: int,
    loaded: LoadedModel,
    model: Model,
    runner: Runner,
    pool: BlockPool,
) -> DiskCache | None:
    """Return the prefix cache on disk; None if `settings` names no directory for it.

    It overwrites the first block of the KV cache, so the pool must not have cached it.

    Args:
        digest: The result of `start_digest`.
        loaded, model: The model without and with its KV cache.
        runner: The runner of `model`.
        pool: The blocks of the KV cache.

    Raises:
        ModelLoadError: The size in `settings` is too small.
    """
    if settings.prefix_cache_dir is None or digest is None:
        return None
    memory = BlockBytes(model.block_tensors())
    max_bytes = settings.prefix_cache_disk_bytes or DEFAULT_PREFIX_CACHE_DISK_BYTES
    # A sixteenth is freed at once, and the files have headers.
    min_bytes = 2 * memory.num_bytes * -(-MIN_TOKENS // pool.block_size)
    if max_bytes < min_bytes:
        raise ModelLoadError(
            f"prefix_cache_disk_bytes={max_bytes} is too small: the minimum for this model is "
            f"{min_bytes}, twice the size of {MIN_TOKENS} tokens."
        )
    # Everything that the bits of a block depend on, apart from the model's files and its prefix.
    facts = (
        sorted(loaded.description.items()),
        loaded.kv_shapes,
        pool.block_size,
        _computed_block(runner, memory, min(pool.block_size, max_model_len), vocab_size),
    )
    return DiskCache(
        BlockFiles(settings.prefix_cache_dir, max_bytes),
        memory,
        pool,
        lambda: sha256(digest() + repr(facts).encode()).digest(),
    )


def _computed_block(runner: Runner, memory: BlockBytes, num_tokens: int, vocab_size: int) -> str:
    """Return a hash of the keys and values of a fixed prompt, as this process computes them.

    It shows a difference of kernels, CPU or libraries if the bits of the cache depend on it.
    """
    prompt = tuple(i % vocab_size for i in range(num_tokens))
    sequence = Sequence(-1, Request(prompt, SamplingParams(max_tokens=1)), num_tokens + 1)
    sequence.block_ids = [0]
    runner.run(Batch((ScheduledSequence(sequence, num_tokens, is_sampled=True),)))
    return sha256(memory.read(0).data).hexdigest()
