"""The waits of vLLM's processes for each other."""

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from service.vllm_engine.busy_waits import end_busy_waits

MODULE = "vllm.distributed.device_communicators.shm_broadcast"


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return vLLM's class after the replacement, which ends with the test."""
    condition = importlib.import_module(MODULE).SpinCondition
    for name in ("__init__", "wait"):
        monkeypatch.setattr(condition, name, getattr(condition, name))
    end_busy_waits()
    return condition


def test_processes_without_vllm_are_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE, None)
    end_busy_waits()


@pytest.mark.vllm
def test_reader_sleeps_after_a_message(waiting: Any, tmp_path: Path) -> None:
    context = importlib.import_module("zmq").Context()
    reader = waiting(is_reader=True, context=context, notify_address=f"ipc://{tmp_path}/notify")
    cpu_s, started_s = time.thread_time(), time.monotonic()
    while time.monotonic() < started_s + 0.5:
        reader.record_read()
        reader.wait(timeout_ms=60_000)
    assert time.thread_time() < cpu_s + 0.25
    context.destroy()


@pytest.mark.vllm
def test_notification_wakes_the_reader(waiting: Any, tmp_path: Path) -> None:
    context, address = importlib.import_module("zmq").Context(), f"ipc://{tmp_path}/notify"
    writer = waiting(is_reader=False, context=context, notify_address=address)
    reader = waiting(is_reader=True, context=context, notify_address=address)
    reader.last_read = float("-inf")
    while not reader.local_notify_socket.poll(10):  # the first ones precede the connection
        writer.notify()
    reader.wait()
    context.destroy()
