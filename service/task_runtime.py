"""Chooses the runtime of a model in this process by the model's task."""

from functools import partial
from pathlib import Path

from chatrpc_process.threads import run_in_daemon_thread
from service import model
from service.checkpoint import resolve
from service.config import ServiceSettings
from service.domain.backend import ModelRuntime, ServedModel
from service.domain.engine import EngineStats
from service.domain.pooling import Task
from service.pooling.checkpoint import find_task
from service.pooling.runtime import PoolingRuntime


class TaskRuntime:
    """`service.domain.backend.ModelRuntime` of a model whose task is known only at its load.

    Args:
        generation: The runtime for a model that generates. It is used until the task is known.
    """

    def __init__(self, settings: ServiceSettings, generation: model.LocalRuntime) -> None:
        self._settings = settings
        self._generation = generation
        self._runtime: ModelRuntime = generation

    async def load(self) -> ServedModel:
        checkpoint = await run_in_daemon_thread(self._generation.find_checkpoint)
        task = find_task(checkpoint.path)
        if task is not Task.GENERATE:
            self._runtime = PoolingRuntime(self._settings, lambda: checkpoint, task)
        return await self._runtime.load()

    def stats(self) -> EngineStats:
        return self._runtime.stats()

    async def wait_available(self, *, is_available: bool) -> None:
        await self._runtime.wait_available(is_available=is_available)

    async def wait_dead(self) -> None:
        await self._runtime.wait_dead()

    async def stop(self) -> bool:
        return await self._runtime.stop()


def local_runtime(settings: ServiceSettings) -> ModelRuntime:
    """Return the runtime of a model in this process. Nothing is loaded yet.

    Raises:
        ConfigError: See `service.model.local_runtime`.
        ModelLoadError: The model's files cannot be read.
    """
    if settings.engine not in {"auto", "local"}:
        return model.local_runtime(settings)
    task = _known_task(settings)
    if task is not None and task is not Task.GENERATE:
        return PoolingRuntime(settings, partial(resolve, settings.model, settings.cache_dir), task)
    generation = model.local_runtime(settings)
    return TaskRuntime(settings, generation) if task is None else generation


def _known_task(settings: ServiceSettings) -> Task | None:
    """Return the task of the model, or None if its files may have to be downloaded first."""
    if settings.task != "auto":
        return Task(settings.task)
    path = Path(settings.model).expanduser()
    return find_task(path) if path.is_dir() else None
