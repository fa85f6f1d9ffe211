"""Three replicas of a model and one gateway: balancing, retries, ejection and affinity."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import EngineDead, QueueFull
from tests.fakes.wait import until
from tests.gateway_http.replicas import Replica, replica, target
from tests.support.gateway import serving
from tests.support.params import slow_but

PATH = "/v1/chat/completions"


@asynccontextmanager
async def gateway(directory: Path, upstream: str, fields: str = "") -> AsyncIterator[Any]:
    """Run a gateway in front of one model called `fake`."""
    path = directory / "registry.toml"
    path.write_text(f'[[model]]\nname = "fake"\ntarget = "{upstream}"\n{fields}\n')
    # An idle connection may end just when it is used again.
    limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
    async with (
        serving(registry=path, sse_ping_interval_s=600) as url,
        httpx.AsyncClient(base_url=url, timeout=120, limits=limits, verify=False) as http,  # noqa: S501  # plain
    ):
        yield http


@pytest.fixture
async def three() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica(name)) for name in "abc"]


def body(text: str = "Hi", **fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **fields}


async def ask(http: httpx.AsyncClient, **headers: str) -> str:
    """Send a request. Return the name of the replica that responds."""
    answer = await http.post(PATH, json=body(), headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def batch(http: httpx.AsyncClient, number: int = 60) -> Counter[str]:
    """Send this many requests; return the number of responses by replica."""
    return Counter(await asyncio.gather(*(ask(http) for _ in range(number))))


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(120):
        while not await holds():
            await asyncio.sleep(0.02)


async def all_known(http: httpx.AsyncClient) -> None:
    """Wait until all replicas get calls. At first, only the one that connects first does."""

    async def are_known() -> bool:
        return set(await batch(http, 12)) == set("abc")

    await eventually(are_known)


async def test_load_follows_capacity(tmp_path: Path, three: list[Replica]) -> None:
    """Each replica gets calls by its free capacity. If that changes, the load changes with it."""
    a, b, c = (each.engine for each in three)
    async with gateway(tmp_path, target(*three)) as http:
        for loads, order in (((8, 4, 1), "abc"), ((1, 4, 8), "cba")):
            a.load, b.load, c.load = loads

            async def follows(order: str = order) -> bool:
                """Return True if five batches in a row have this order. One may by chance."""
                for _ in range(5):
                    taken = await batch(http)
                    least, middle, most = (taken[name] for name in order)
                    if not (least < middle < most and most > 30):
                        return False
                return True

            await eventually(follows)


async def test_larger_replica_gets_more_calls(tmp_path: Path) -> None:
    async with (
        replica("small", max_num_seqs=4) as small,
        replica("large", max_num_seqs=36) as large,
        gateway(tmp_path, target(small, large)) as http,
    ):
        small.engine.load = large.engine.load = 4

        async def follows() -> bool:
            taken = await batch(http)
            return taken["large"] > 4 * taken["small"] > 0

        await eventually(follows)


POLICIES = {
    "round_robin": 'balance = "round_robin"',
    "weighted_round_robin": 'balance = "weighted_round_robin"',
    "ring_hash": 'balance = "ring_hash"\naffinity = "session"',
}


@pytest.mark.parametrize("policy", slow_but(list(POLICIES)[:1], POLICIES))
async def test_replica_that_is_not_serving_gets_no_calls(
    tmp_path: Path, three: list[Replica], policy: str
) -> None:
    """Every policy is tested, also with outlier detection."""
    fields = POLICIES[policy] + "\noutlier_detection = {}"
    async with gateway(tmp_path, target(*three), fields) as http:
        await all_known(http)
        draining = asyncio.ensure_future(three[0].lifecycle.drain(3600, 0))

        async def is_left_out() -> bool:
            return "a" not in await batch(http)

        await eventually(is_left_out)
        before = three[0].engine.num_asked
        assert set(await batch(http)) == set("bc")
        assert three[0].engine.num_asked == before
        draining.cancel()


async def test_draining_replica_finishes_its_streams(tmp_path: Path, three: list[Replica]) -> None:
    """New requests go to other replicas, even before the gateway has noticed the draining."""
    async with gateway(tmp_path, target(*three), 'balance = "round_robin"') as http:
        await all_known(http)
        for each in three:
            each.engine.hold_after_first()
        asking = [http.post(PATH, json=body(stream=True)) for _ in range(9)]
        streams = [asyncio.ensure_future(each) for each in asking]
        await until(lambda: sum(each.engine.num_running for each in three) == 9)
        held = three[0].engine.num_running
        assert held == 3
        for each in three[1:]:
            each.engine.answer(each.engine.name)
        draining = asyncio.ensure_future(three[0].server.drain(0, 600))
        assert set(await batch(http)) == set("bc")
        assert three[0].engine.num_running == held
        assert not draining.done()
        for each in three:
            each.engine.go.set()
        for stream in await asyncio.gather(*streams):
            assert '">"' in stream.text
            assert '"."' in stream.text
            assert stream.text.endswith("data: [DONE]\n\n")
        await draining


async def test_call_rejected_by_a_full_replica_goes_to_another(
    tmp_path: Path, three: list[Replica]
) -> None:
    full = three[0].engine
    async with gateway(tmp_path, target(*three), 'balance = "round_robin"') as http:
        await all_known(http)
        full.reserve_error = QueueFull(3, 2.5)
        before = full.num_reservations
        assert {await ask(http) for _ in range(12)} == set("bc")
        assert full.num_reservations >= before + 3  # it got one attempt in each round
        for each in three:
            each.engine.reserve_error = QueueFull(3, 2.5)
        answer = await http.post(PATH, json=body())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "3"  # of this replica, not of the next attempt
        assert answer.json()["error"]["code"] == "server_is_overloaded"


async def test_failing_replica_is_ejected(tmp_path: Path, three: list[Replica]) -> None:
    fields = """
        balance = "round_robin"
        outlier_detection.interval_s = 0.2
        outlier_detection.failure_percentage = 50
        outlier_detection.request_volume = 3
        outlier_detection.base_ejection_time_s = 600
    """
    async with gateway(tmp_path, target(*three), fields) as http:
        await all_known(http)
        three[0].engine.script = [EngineDead()]

        async def is_ejected() -> bool:
            answers = await asyncio.gather(*(http.post(PATH, json=body()) for _ in range(30)))
            return all(answer.status_code == 200 for answer in answers)

        assert not await is_ejected()
        await eventually(is_ejected)
        assert set(await batch(http)) == set("bc")


async def test_session_stays_on_its_replica(tmp_path: Path, three: list[Replica]) -> None:
    fields = 'balance = "ring_hash"\naffinity = "session"'
    async with gateway(tmp_path, target(*three), fields) as http:
        await all_known(http)
        sessions = [f"session-{i}" for i in range(24)]
        homes = {each: await ask(http, **{"x-session-id": each}) for each in sessions}
        assert set(homes.values()) == set("abc")
        for each in sessions:
            assert await ask(http, **{"x-session-id": each}) == homes[each]
        assert set(await batch(http)) == set("abc")  # without a session, any replica is used

        await three[0].server.drain(0, 600)  # its sessions move, others do not

        async def are_connected() -> bool:
            """All attempts of a call go to one replica until the gateway detects its end."""
            asked = [http.post(PATH, json=body(), headers={"x-session-id": s}) for s in sessions]
            return all(answer.status_code == 200 for answer in await asyncio.gather(*asked))

        await eventually(are_connected)
        for each in sessions:
            home = await ask(http, **{"x-session-id": each})
            assert home == homes[each] if homes[each] != "a" else home in "bc"


async def test_prompts_that_begin_alike_meet(tmp_path: Path, three: list[Replica]) -> None:
    fields = 'balance = "ring_hash"\naffinity = "prefix"\nprefix_chars = 20'
    async with gateway(tmp_path, target(*three), fields) as http:
        homes: list[str] = []
        for i in range(12):
            taken = set()
            for end in ("", " x", " y"):
                answer = await http.post(PATH, json=body(f"prefix {i}".ljust(20, ".") + end))
                taken.add(answer.json()["choices"][0]["message"]["content"])
            assert len(taken) == 1
            homes.extend(taken)
        assert len(set(homes)) > 1


@dataclass
class Process:
    """A replica that can be killed."""

    running: asyncio.subprocess.Process
    port: int = 0
    num_asked: int = 0

    async def follow(self) -> None:
        assert self.running.stdout is not None
        async for line in self.running.stdout:
            self.port, self.num_asked = map(int, line.split())

    def go(self) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write(b"go\n")


@asynccontextmanager
async def process(name: str) -> AsyncIterator[Process]:
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.gateway_http.replicas", name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    replica = Process(running)
    following = asyncio.ensure_future(replica.follow())
    try:
        await until(lambda: replica.port != 0 or running.returncode is not None)
        yield replica
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()
        await following


@pytest.mark.slow
async def test_unstarted_requests_of_a_killed_one_are_answered_elsewhere(tmp_path: Path) -> None:
    """The test sends more requests than a replica can run, so a whole queue is lost with it."""
    number = 150
    async with AsyncExitStack() as stack:
        opening = [stack.enter_async_context(process(name)) for name in "abc"]
        a, b, c = [await each for each in opening]
        upstream = "ipv4:" + ",".join(f"127.0.0.1:{each.port}" for each in (a, b, c))
        async with gateway(tmp_path, upstream) as http:
            asking = [
                asyncio.ensure_future(http.post(PATH, json=body(stream=i % 2 == 0)))
                for i in range(number)
            ]
            await until(lambda: a.num_asked + b.num_asked + c.num_asked == number)
            assert a.num_asked
            a.running.kill()
            await until(lambda: b.num_asked + c.num_asked == number)
            b.running.kill()
            await until(lambda: c.num_asked == number)
            c.go()
            answers = await asyncio.gather(*asking)
    for i, answer in enumerate(answers):
        assert answer.status_code == 200
        assert '"content":"c"' in answer.text
        assert answer.text.endswith("data: [DONE]\n\n") == (i % 2 == 0)
