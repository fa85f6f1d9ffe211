"""The engines and chat backends that `--engine` can name."""

import inspect
import os
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from chatrpc_process.errors import ConfigError
from service.domain.engine import Engine, EngineFactory
from service.domain.engine_settings import Device, EngineSettings

# An import string, module:attribute, of each engine's factory.
ENGINES: Mapping[str, str] = {
    "local": "service.engine.local:local_engine",
    "vllm": "service.vllm_engine.engine:vllm_engine",
}
# An import string of a function that checks the settings of an engine further than its factory can,
# because that takes seconds.
CHECKS: Mapping[str, str] = {
    "vllm": "service.vllm_engine.engine:check_settings",
}
# An import string of the factory of each chat backend that has no engine. It is called with the
# service's settings and returns a `ModelRuntime`.
BACKENDS: Mapping[str, str] = {
    "openai": "service.upstream.runtime:upstream_runtime",
}
# The extra of chatrpc that each engine or backend needs, and a package that the extra installs.
EXTRAS: Mapping[str, tuple[str, str]] = {
    "local": ("local", "torch"),
    "vllm": ("vllm", "vllm"),
    "openai": ("upstream", "httpx"),
}
# Devices of GPUs that CUDA or ROCm can use.
_GPUS = ("nvidia[0-9]*", "kfd", "dxg")


def check_engine_name(name: str) -> None:
    """Check that `name` is `auto`, in a table or an import string. Nothing is imported.

    Raises:
        ConfigError: `name` is none of these.
    """
    known_names = ["auto", *ENGINES, *BACKENDS]
    if name not in known_names and not _is_import_string(name):
        known = ", ".join(known_names)
        raise ConfigError(
            f"There is no engine {name!r}. Use one of {known}, or the import string of an engine "
            "factory, such as my_package.engine:make_engine."
        )


def auto_engine(device: Device, *, has_vllm: bool, has_gpu: bool) -> str:
    """Return the engine that `auto` stands for."""
    return "vllm" if has_vllm and has_gpu and device != "cpu" else "local"


def chosen_engine(name: str, device: Device) -> str:
    """Return the engine of the option `engine`: `name`, or the engine that `auto` stands for."""
    if name != "auto":
        return name
    has_vllm = find_spec("vllm") is not None
    return auto_engine(device, has_vllm=has_vllm, has_gpu=_has_gpu())


def load_engine_factory(name: str, device: Device = "auto") -> EngineFactory:
    """Import the factory of the engine `name`: `auto`, a known engine or an import string.

    Args:
        device: The option `device`, on which the choice of `auto` depends.

    Raises:
        ConfigError: The name is unknown, its extra is not installed, the module or the attribute
            does not exist, or the attribute cannot be called with settings.
    """
    check_engine_name(name)
    name = chosen_engine(name, device)
    target = ENGINES.get(name, name)
    factory: EngineFactory = load_factory(name, target)
    try:
        inspect.signature(factory).bind(EngineSettings())
    except (TypeError, ValueError):
        raise ConfigError(
            f"engine={name}: {target} is not an engine factory: it cannot be called with one "
            "argument, the engine's settings."
        ) from None
    return factory


def load_factory(name: str, target: str) -> Callable[..., Any]:
    """Import the factory `target`, an import string, of the engine or backend `name`.

    Raises:
        ConfigError: The extra of `name` is not installed, the module or the attribute does not
            exist, or it cannot be called.
    """
    _check_extra(name)
    module_name, _, attribute = target.partition(":")
    try:
        found: object = import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"engine={name}: the module {module_name} cannot be imported: {error}"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(
                f"engine={name}: the module {module_name} has no attribute {attribute}."
            ) from None
    if not callable(found):
        raise ConfigError(f"engine={name}: {target} is not an engine factory: it is not callable.")
    return found


def make_engine(name: str, settings: EngineSettings) -> Engine:
    """Make the engine `name`, which has not been started.

    Raises:
        ConfigError: See `load_engine_factory`; or the engine rejects the settings; or the factory
            returned something else.
    """
    name = chosen_engine(name, settings.device)
    if settings.vllm_args and name == "local":
        raise ConfigError("vllm_args are for the engine vllm, and the engine local is used.")
    engine = load_engine_factory(name)(settings)
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"engine={name}: the factory returned {type(engine).__name__}, which is not an engine: "
            "see service.domain.engine.Engine."
        )
    return engine


def check_engine(name: str, settings: EngineSettings) -> None:
    """Check an engine's settings without making it. This may import the engine's packages.

    Raises:
        ConfigError: The engine cannot be imported, or it rejects the settings.
    """
    name = chosen_engine(name, settings.device)
    load_engine_factory(name)
    if name in CHECKS:
        load_factory(name, CHECKS[name])(settings)


def _has_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(next(Path("/dev").glob(pattern), None) for pattern in _GPUS)


def _check_extra(name: str) -> None:
    extra, package = EXTRAS.get(name, (None, ""))
    if extra is not None and find_spec(package) is None:
        raise ConfigError(
            f"engine={name} needs the extra chatrpc[{extra}], which is not installed: "
            f"pip install 'chatrpc[{extra}]'"
        )


def _is_import_string(name: str) -> bool:
    module, separator, attribute = name.partition(":")
    parts = [*module.split("."), *attribute.split(".")]
    return bool(separator) and all(part.isidentifier() for part in parts)
