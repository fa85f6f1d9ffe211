"""The engine of this repository, `--engine local`."""

from dataclasses import fields
from functools import partial
from threading import Thread

from service.domain.engine_settings import EngineModel, EngineSettings
from service.engine.async_engine import AsyncEngine
from service.engine.core import EngineCore


def local_engine(settings: EngineSettings) -> AsyncEngine:
    """Return an engine that computes on this machine; see `service.domain.engine.EngineFactory`.

    It also starts to compile the CPU kernels on another thread. So they are compiled while the
    model's files are downloaded or converted.
    """
    compiling = Thread(target=_compile_kernels, args=(settings,), daemon=True)
    compiling.start()
    return AsyncEngine(
        partial(_load, settings, compiling),
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )


def _load(
    settings: EngineSettings, compiling: Thread, model: EngineModel
) -> tuple[EngineCore, int]:
    """Load the model, on the engine's thread. Importing torch there takes 2 s."""
    compiling.join()
    from service.engine.load import EngineOptions, load_engine  # noqa: PLC0415  # see above

    chosen = {each.name: getattr(settings, each.name) for each in fields(EngineSettings)}
    return load_engine(EngineOptions(model.path, check_token_ids=model.check_token_ids, **chosen))


def _compile_kernels(settings: EngineSettings) -> None:
    """Compile the CPU kernels, unless the model will run on a GPU."""
    if settings.device == "cuda":
        return
    from service.engine.native.build import compile_kernels  # noqa: PLC0415  # it imports torch

    compile_kernels(settings.cache_dir, settings.cpu_level, may_use_gpu=settings.device == "auto")
