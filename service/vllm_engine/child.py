"""Prepares vLLM's own processes: their variables, logs, process group, waits and end.

Part of it runs in these processes, as a plugin of vLLM's group `vllm.general_plugins`. vLLM's core
does not notice by itself that the process that started it was killed.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Container
from contextlib import suppress
from typing import get_args

from chatrpc_process.logs.configuration import (
    LogFormat,
    LogLevel,
    configure_logging,
    configured_logging,
)
from service.domain.engine_settings import EngineSettings
from service.vllm_engine.busy_waits import end_busy_waits

# This variable is set for vLLM's processes: the id of the process that starts them, and the level
# and format of log lines.
_VARIABLE = "CHATRPC_VLLM"
_LEVEL_VARIABLE = "VLLM_LOGGING_LEVEL"
_PLUGIN = "chatrpc"


def prepare_environment(settings: EngineSettings) -> None:
    """Set the variables of vLLM, before it is imported.

    Variables of vLLM that the operator has set keep their values.
    """
    level, form = configured_logging()
    os.environ[_VARIABLE] = f"{os.getpid()} {level} {form}"
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and _PLUGIN not in plugins.split(","):
        os.environ["VLLM_PLUGINS"] = f"{plugins},{_PLUGIN}"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # This process has threads, of gRPC for example, whose locks a forked process could not release.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_CACHE_ROOT", str(settings.cache_dir / "vllm"))
    if settings.num_threads is not None:
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(settings.num_threads)
    if "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    _set_vllm_level()


def plugin() -> None:
    """Prepare a process of vLLM: its logs, its process group, its waits and its end.

    Does nothing in the process that starts vLLM, and in a vLLM that another program has started.
    """
    parent = multiprocessing.parent_process()
    values = os.environ.get(_VARIABLE, "").split()
    if parent is None or len(values) != 3 or values[0] == str(os.getpid()):
        return
    if os.environ.get("VLLM_CONFIGURE_LOGGING") == "0":
        level = next(each for each in get_args(LogLevel) if each == values[1])
        form = next(each for each in get_args(LogFormat) if each == values[2])
        configure_logging(level, form)
        _set_vllm_level()
    with suppress(PermissionError):  # the process leads a session
        # A terminal sends Ctrl-C to its foreground group. The service drains; vLLM must not end.
        os.setpgid(0, 0)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    end_busy_waits()


def running_processes() -> set[int]:
    """Return the ids of the processes that this process has started and that have not ended."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def kill_processes(*, except_for: Container[int]) -> None:
    """Kill the processes that this process has started, except for those with these ids."""
    for process in multiprocessing.active_children():
        if process.pid not in except_for:
            process.kill()


def _exit_with(parent: "multiprocessing.process.BaseProcess") -> None:
    parent.join()
    os._exit(1)


def _set_vllm_level() -> None:
    """Apply the level that the operator has set for vLLM's own log lines."""
    level = logging.getLevelNamesMapping().get(os.environ.get(_LEVEL_VARIABLE, "").upper())
    if level is not None:
        logging.getLogger("vllm").setLevel(level)
