"""Chooses the runtime of the model: an engine in this process, or a chat backend without one."""

from collections.abc import Callable
from functools import partial

from service.config import ServiceSettings
from service.domain.backend import ModelRuntime
from service.engines import BACKENDS, check_engine, load_engine_factory, load_factory

# An import string of the factory of the runtime with an engine. It is not imported for a chat
# backend, which needs no packages of the text layer.
_LOCAL_RUNTIME = "service.task_runtime:local_runtime"


def load_runtime_factory(settings: ServiceSettings) -> Callable[[], ModelRuntime]:
    """Import the engine or backend that the settings name. It is not made yet.

    Raises:
        ConfigError: It cannot be imported.
    """
    name = settings.engine
    if name in BACKENDS:
        return partial(load_factory(name, BACKENDS[name]), settings)
    load_engine_factory(name, settings.device)
    return partial(load_factory(name, _LOCAL_RUNTIME), settings)


def check_runtime(settings: ServiceSettings) -> None:
    """Check the options of the engine or backend that the settings name. No engine is made.

    Raises:
        ConfigError: It cannot be imported, or it rejects the options.
    """
    make = load_runtime_factory(settings)
    if settings.engine in BACKENDS:
        make()  # reads files of keys and certificates, and connects to nothing
    else:
        check_engine(settings.engine, settings.engine_settings)
