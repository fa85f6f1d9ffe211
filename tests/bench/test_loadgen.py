"""Closed and open loops, with a client that completes at once or on request."""

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.loadgen import closed_loop, exchange, open_loop, poisson
from bench.request import Record, Transcript, ask

REQUESTS = [ask(str(index), 1) for index in range(10)]


class CountingClient:
    """A client that responds after one iteration of the loop, and counts concurrent requests."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.texts: list[str] = []

    async def send(self, transcript: Transcript) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.texts.append(transcript.request.messages[0].content)
        await asyncio.sleep(0)
        self.now -= 1

    def read(self, transcript: Transcript) -> Record:
        raise NotImplementedError

    async def close(self) -> None: ...


class DeadClient(CountingClient):
    """A client that never completes."""

    async def send(self, transcript: Transcript) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize("num_clients", [1, 3, 10, 20])
async def test_closed_loop_sends_all_requests_with_its_concurrency(num_clients: int) -> None:
    client = CountingClient()
    done: list[None] = []
    transcripts = await closed_loop(
        client, REQUESTS, num_clients, on_done=lambda: done.append(None)
    )
    assert sorted(client.texts) == sorted(str(index) for index in range(10))
    assert client.most == min(num_clients, 10)
    assert len(transcripts) == len(done) == 10


async def test_closed_loop_after_its_time_limit_sends_one_request_per_client() -> None:
    client = CountingClient()
    transcripts = await closed_loop(client, REQUESTS, 4, max_start_s=-1)
    assert len(transcripts) == 4


async def test_open_loop_sends_and_measures_from_its_arrival_times() -> None:
    client = CountingClient()
    transcripts = await open_loop(client, REQUESTS[:3], [0.02, 0.0, 0.01])
    assert client.texts == ["1", "2", "0"]
    first, *_ = due = [transcript.due_s for transcript in transcripts]
    assert [time_s - first for time_s in due] == pytest.approx([0.0, -0.02, -0.01])


async def test_request_without_a_response_has_a_fault() -> None:
    await exchange(DeadClient(), transcript := Transcript(REQUESTS[0]), timeout_s=0.01)
    assert transcript.error == "no end within 0.01 s"


@given(st.floats(min_value=0.1, max_value=1000), st.integers(1, 100), st.integers())
def test_arrivals_start_at_zero_and_increase(rate: float, number: int, seed: int) -> None:
    times_s = poisson(rate, number, random.Random(seed))
    assert len(times_s) == number
    assert times_s[0] == 0.0
    assert times_s == sorted(times_s)
    assert times_s == poisson(rate, number, random.Random(seed))


def test_arrivals_have_their_mean_rate_and_vary() -> None:
    times_s = poisson(4.0, 20_000, random.Random(1))
    gaps = [b - a for a, b in pairwise(times_s)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert mean == pytest.approx(0.25, rel=0.03)
    assert variance == pytest.approx(mean**2, rel=0.1)  # as for an exponential distribution
