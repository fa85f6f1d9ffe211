"""Blocking work in daemon threads."""

import asyncio
import threading

import pytest

from chatrpc_process.threads import run_in_daemon_thread


async def test_result_of_the_function_is_returned() -> None:
    thread = await run_in_daemon_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert thread.daemon


async def test_error_of_the_function_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_in_daemon_thread(lambda: 1 // 0)


def test_function_that_outlives_its_loop_delays_and_breaks_nothing() -> None:
    may_end = threading.Event()
    threads: list[threading.Thread] = []

    def block() -> None:
        threads.append(threading.current_thread())
        may_end.wait()

    async def main() -> None:
        running = asyncio.create_task(run_in_daemon_thread(block))
        while not threads:
            await asyncio.sleep(0)
        running.cancel()

    asyncio.run(main())
    assert threads[0].is_alive()
    may_end.set()
    threads[0].join()  # pytest would report an exception of the thread
