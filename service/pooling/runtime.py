"""Loads a pooling model, and serves it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from chatrpc_process.threads import run_in_daemon_thread
from service.checkpoint import Checkpoint, load_vocab_size
from service.config import GENERATION_FIELDS, ServiceSettings
from service.domain.backend import ServedModel
from service.domain.engine import EngineStats
from service.domain.engine_settings import EngineSettings
from service.domain.model import ModelCard
from service.domain.pooling import Task
from service.errors import ModelLoadError
from service.fingerprint import fingerprint
from service.pooling.backend import LocalClassifier, LocalEmbeddings, PoolingBackend
from service.pooling.checkpoint import (
    check_task,
    classifier_head,
    embedding_modules,
    max_input_tokens,
    reads_type_ids,
)
from service.pooling.engine import PoolingEngine, Runner
from service.pooling.tokenization import InputTokenizer
from service.text.hf_tokenizer import load_tokenizer

# Requests that count as running. More only change how the queue is shared.
_MAX_NUM_SEQS = 32
# More tokens in a step do not fit into the caches of a CPU core together.
_MAX_NUM_BATCHED_TOKENS = 512


class PoolingRuntime:
    """`service.domain.backend.ModelRuntime` of a model that does not generate."""

    def __init__(
        self, settings: ServiceSettings, find_checkpoint: Callable[[], Checkpoint], task: Task
    ) -> None:
        """Create the runtime. Nothing is loaded yet.

        Args:
            find_checkpoint: Returns the model's files, and downloads them if needed.

        Raises:
            ModelLoadError: The settings do not fit the task.
        """
        if given := sorted(GENERATION_FIELDS & settings.model_fields_set):
            raise ModelLoadError(f"{given[0]} cannot be set for a model with task={task.value}.")
        self._settings = settings
        self._find_checkpoint = find_checkpoint
        self._task = task
        engine: EngineSettings = settings.engine_settings
        self._path: Path
        self._engine = PoolingEngine(
            lambda: _load_runner(self._path, task, engine),
            max_num_seqs=engine.max_num_seqs or _MAX_NUM_SEQS,
            max_queue_size=engine.max_queue_size,
            max_num_batched_tokens=engine.max_num_batched_tokens or _MAX_NUM_BATCHED_TOKENS,
            step_timeout_s=engine.step_timeout_s,
        )

    async def load(self) -> ServedModel:
        served = await run_in_daemon_thread(self._read)
        await self._engine.start()
        return served

    def stats(self) -> EngineStats:
        return self._engine.stats()

    async def wait_available(self, *, is_available: bool) -> None:
        """Return at once, or never: an engine in this process is available until it fails."""
        if not is_available:
            await asyncio.Event().wait()

    async def wait_dead(self) -> None:
        await self._engine.wait_dead()

    async def stop(self) -> bool:
        return await self._engine.stop()

    def _read(self) -> ServedModel:
        """Read everything except the weights, which the engine loads when it is started.

        Raises:
            ModelLoadError: The model is corrupt or cannot serve the task.
        """
        settings, task, checkpoint = self._settings, self._task, self._find_checkpoint()
        self._path = path = checkpoint.path
        check_task(path, task)
        max_tokens = max_input_tokens(path, settings.max_model_len)
        tokenizer = load_tokenizer(path)
        vocab_size = load_vocab_size(path)
        modules = embedding_modules(path) if task is Task.EMBED else None
        inputs = InputTokenizer(
            tokenizer.to_json(),
            vocab_size,
            max_tokens,
            lowercases=modules is not None and modules.lowercases,
            has_types=reads_type_ids(path),
        )
        card = ModelCard(
            id=settings.served_model_name or checkpoint.id,
            aliases=tuple(settings.model_aliases),
            created=int((path / "config.json").stat().st_mtime),
            owned_by="chatrpc",
            root=checkpoint.root,
            max_model_len=max_tokens,
            fingerprint=fingerprint(path, task.value, settings.dtype),
            engine="local",
            quantization="float32" if settings.dtype == "auto" else settings.dtype,
            max_output_tokens=0,
        )
        backend = PoolingBackend(self._engine, tokenizer, max_tokens, vocab_size)
        if modules is not None:
            embeddings = LocalEmbeddings(self._engine, inputs, modules)
            return ServedModel(card, backend, embeddings=embeddings, scorer=embeddings)
        classifier = LocalClassifier(self._engine, inputs, classifier_head(path))
        scorer = classifier if task is Task.SCORE else None
        return ServedModel(card, backend, classifier=classifier, scorer=scorer)


def _load_runner(path: Path, task: Task, settings: EngineSettings) -> Runner:
    """Load the model, on the engine's thread. Importing torch and transformers there takes 5 s."""
    from service.pooling.runners import load_runner  # noqa: PLC0415  # see above

    return load_runner(path, task, settings)
