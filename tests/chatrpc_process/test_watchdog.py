"""A loop that hangs ends its process; one that is slow, or whose process was stopped, does not."""

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


async def test_a_call_that_blocks_the_loop_is_its_end() -> None:
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


async def test_a_loop_that_turns_goes_on() -> None:
    codes: list[int] = []
    loop = asyncio.get_running_loop()
    with watched_loop(1.0, codes.append):
        until_s = loop.time() + 1.5
        await until(lambda: loop.time() > until_s)
    assert not codes


async def test_nobody_watches_when_the_loop_has_been_left() -> None:
    codes: list[int] = []
    with watched_loop(0.01, codes.append):
        await asyncio.sleep(0)
    watchdogs = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
    for thread in watchdogs:  # which blocks the loop
        thread.join(FAILSAFE_S)
        assert not thread.is_alive()
    assert not codes


# Says that it turns, until it is told to end.
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


def test_a_process_that_was_stopped_goes_on() -> None:
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
        time.sleep(1.0)  # twice what a loop is given: the time itself is what is tested
        process.send_signal(signal.SIGCONT)
        for _ in range(200):  # more than a pipe held back, and longer than ticks take
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


def test_the_process_ends_and_says_where_it_hung() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HANGING], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == EXIT_CODE
    said = json.loads(done.stderr)
    assert said["event"] == "event_loop_hangs"
    assert "time.sleep(600)" in said["stack"] or "in main" in said["stack"]


def test_a_log_that_nobody_reads_does_not_keep_it() -> None:
    fill = (
        "import os, fcntl; os.set_blocking(2, False)\ntry:\n  while os.write(2, b'x' * 4096): pass"
    )
    fill += "\nexcept BlockingIOError: os.set_blocking(2, True)\n"
    process = subprocess.Popen([sys.executable, "-c", fill + _HANGING], stderr=subprocess.PIPE)
    assert process.wait(120) == EXIT_CODE  # nobody has read
    assert process.stderr is not None
    process.stderr.close()
