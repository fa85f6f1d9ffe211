"""Runs blocking work in a thread beside an event loop."""

import asyncio
import concurrent.futures
from collections.abc import Callable
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")


async def run_in_daemon_thread(function: Callable[[], Result]) -> Result:
    """Run `function` in a thread that does not delay the end of the process.

    The end of an event loop waits for threads of `asyncio.to_thread`. If this coroutine is
    cancelled, the thread goes on and its result is dropped.

    Raises:
        Exception: `function` has raised it.
    """
    future: concurrent.futures.Future[Result] = concurrent.futures.Future()
    future.set_running_or_notify_cancel()  # a cancelled task must not cancel it

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return await asyncio.wrap_future(future)
