"""The watchdog ends a process with a blocked loop, and not one that is slow or was stopped."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time

from structlog.testing import capture_logs

from chatrpc_process.watchdog import EXIT_CODE, watched_loop
from tests.fakes.wait import FAILSAFE_S, until


async def test_blocked_loop_ends_the_process() -> None:
    released, codes = threading.Event(), []

    def block_the_loop() -> None:
        assert released.wait(120)

    def end(code: int) -> None:
        codes.append(code)
        released.set()

    with capture_logs() as logs, watched_loop(0.2, end):
        await asyncio.sleep(0)
        block_the_loop()
    assert codes == [EXIT_CODE]
    [entry] = logs
    assert entry["event"] == "event_loop_hangs"
    assert "block_the_loop" in entry["stack"]


async def test_running_loop_is_not_ended() -> None:
    codes: list[int] = []
    loop = asyncio.get_running_loop()
    with watched_loop(1.0, codes.append):
        until_s = loop.time() + 1.5
        await until(lambda: loop.time() > until_s)
    assert not codes


async def test_left_context_is_not_watched() -> None:
    codes: list[int] = []
    with watched_loop(0.01, codes.append):
        await asyncio.sleep(0)
    watchdogs = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    for thread in watchdogs:  # `join` blocks the loop
        thread.join(FAILSAFE_S)
        assert not thread.is_alive()
    assert not codes


# A program that prints lines until its stdin is closed.
_BEATING = """
import asyncio, sys
from chatrpc_process.watchdog import watched_loop

async def main():
    asyncio.get_running_loop().add_reader(0, sys.exit, 0)
    with watched_loop(0.5):
        while True:
            print("turn", flush=True)
            await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_stopped_process_continues() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _BEATING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)  # twice the timeout of the loop; the duration itself is tested
        process.send_signal(signal.SIGCONT)
        for _ in range(200):  # more lines than the pipe has buffered, for longer than several ticks
            assert process.stdout.readline()
        process.stdin.close()
        process.stdout.read()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


_HANGING = """
import asyncio, time
from chatrpc_process.logs.configuration import configure_logging
from chatrpc_process.watchdog import watched_loop

async def main():
    with watched_loop(0.2):
        await asyncio.sleep(0)
        time.sleep(600)

configure_logging("info", "json")
asyncio.run(main())
"""


def test_stack_is_logged_before_the_process_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGING], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == EXIT_CODE
    said = json.loads(done.stderr)
    assert said["event"] == "event_loop_hangs"
    assert "time.sleep(600)" in said["stack"] or "in main" in said["stack"]


def test_unread_log_does_not_delay_the_end() -> None:
    fill = (
        "import os, fcntl; os.set_blocking(2, False)\ntry:\n  while os.write(2, b'x' * 4096): pass"
    )
    fill += "\nexcept BlockingIOError: os.set_blocking(2, True)\n"
    process = subprocess.Popen([sys.executable, "-c", fill + _HANGING], stderr=subprocess.PIPE)
    assert process.wait(120) == EXIT_CODE
    assert process.stderr is not None
    process.stderr.close()
