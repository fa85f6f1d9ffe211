"""Sends requests, either from a number of concurrent clients or at given times."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from bench.request import Client, Request, Transcript

# A request that takes longer counts as failed.
REQUEST_TIMEOUT_S = 180

OnDone = Callable[[], None]


async def exchange(
    client: Client,
    transcript: Transcript,
    due_s: float | None = None,
    timeout_s: float = REQUEST_TIMEOUT_S,
) -> None:
    """Send one request. An error is recorded in its transcript."""
    transcript.due_s = time.perf_counter() if due_s is None else due_s
    try:
        async with asyncio.timeout(timeout_s):
            await client.send(transcript)
    except TimeoutError:
        transcript.error = f"no end within {timeout_s} s"


async def closed_loop(
    client: Client,
    requests: Sequence[Request],
    num_clients: int,
    *,
    max_start_s: float = float("inf"),
    on_done: OnDone = lambda: None,
) -> list[Transcript]:
    """Run `num_clients` clients. Each sends its next request when its last one is complete.

    No request starts after `max_start_s`, except the first of each client. Running requests are
    awaited.
    """
    waiting = enumerate(requests)
    transcripts: list[Transcript] = []
    give_up_s = time.perf_counter() + max_start_s

    async def one_client() -> None:
        for index, request in waiting:
            if index >= num_clients and time.perf_counter() > give_up_s:
                return
            transcripts.append(transcript := Transcript(request))
            await exchange(client, transcript)
            on_done()

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(one_client())
    return transcripts


async def open_loop(
    client: Client,
    requests: Sequence[Request],
    times_s: Sequence[float],
    *,
    on_done: OnDone = lambda: None,
) -> list[Transcript]:
    """Send each request at its time, in seconds from now, regardless of running ones."""
    start_s = time.perf_counter()

    async def one_request(transcript: Transcript, due_s: float) -> None:
        await asyncio.sleep(due_s - time.perf_counter())
        await exchange(client, transcript, due_s)
        on_done()

    transcripts = [Transcript(request) for request in requests]
    async with asyncio.TaskGroup() as group:
        for transcript, time_s in zip(transcripts, times_s, strict=True):
            group.create_task(one_request(transcript, start_s + time_s))
    return transcripts


def poisson(rate: float, num_requests: int, rng: random.Random) -> list[float]:
    """Return random times of independent arrivals, on average `rate` a second. The first is 0."""
    gaps = (rng.expovariate(rate) for _ in range(num_requests - 1))
    return list(itertools.accumulate(gaps, initial=0.0))


@contextmanager
def cpu_time() -> Iterator[Callable[[], float]]:
    """Yield a function that returns this process's CPU seconds since the start of the block."""
    start_s = time.process_time()
    yield lambda: time.process_time() - start_s
