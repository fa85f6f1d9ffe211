"""The preparation of vLLM's processes."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.domain.engine_settings import EngineSettings
from service.vllm_engine.child import plugin, prepare_environment
from tests.fakes.wait import block_until


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo changes of the environment, and begin without variables of vLLM."""
    for name in [name for name in os.environ if name.startswith(("VLLM_", "OMP_"))]:
        monkeypatch.delenv(name)
    for name in ("CHATRPC_VLLM", "VLLM_CACHE_ROOT", "OMP_NUM_THREADS", "VLLM_PLUGINS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())


def test_variables_that_are_not_set_get_our_values() -> None:
    prepare_environment(EngineSettings(cache_dir=Path("/cache"), num_threads=3))
    expected = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_CONFIGURE_LOGGING": "0",
        "VLLM_CACHE_ROOT": "/cache/vllm",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "3",
    }
    assert expected.items() <= os.environ.items()
    assert "VLLM_PLUGINS" not in os.environ


def test_variables_of_the_operator_keep_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "VLLM_NO_USAGE_STATS": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "fork",
        "VLLM_LOGGING_CONFIG_PATH": "/logging.json",
        "VLLM_CACHE_ROOT": "/elsewhere",
        "VLLM_CPU_OMP_THREADS_BIND": "0-3",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_environment(EngineSettings())
    assert given.items() <= os.environ.items()
    assert "VLLM_CONFIGURE_LOGGING" not in os.environ
    assert "OMP_NUM_THREADS" not in os.environ


def test_plugin_is_added_to_those_of_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    prepare_environment(EngineSettings())
    prepare_environment(EngineSettings())
    assert os.environ["VLLM_PLUGINS"] == "other,chatrpc"


def test_level_of_the_operator_applies_to_lines_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "level", logger.level)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "error")
    prepare_environment(EngineSettings())
    assert logger.level == logging.ERROR


def test_plugin_does_nothing_in_a_vllm_of_another_program() -> None:
    group = os.getpgid(0)
    plugin()
    assert os.getpgid(0) == group


def test_process_of_vllm_has_our_logs_and_its_own_group_and_ends_with_the_service() -> None:
    command = [sys.executable, "-m", "tests.fakes.vllm_child"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout is not None
            about = json.loads(service.stdout.readline())
            assert about["logging"] == ["warning", "json"]
            assert about["group"] == about["pid"] != os.getpgid(service.pid)
            assert psutil.pid_exists(about["pid"])
        finally:
            service.kill()
        block_until(lambda: not psutil.pid_exists(about["pid"]))
