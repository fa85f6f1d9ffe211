"""The choice among upstreams, and the time for which a failed one is put aside."""

import asyncio
import ssl

import pytest

from service.domain.engine import UpstreamStats
from service.errors import UpstreamAccessDenied, UpstreamDown, UpstreamRateLimited
from service.upstream.client import ConnectionOptions, Upstream
from service.upstream.failures import AttemptFailed
from service.upstream.pool import Member, UpstreamPool
from tests.fakes.wait import failsafe


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def pool(number: int = 2) -> tuple[UpstreamPool, Clock]:
    options = ConnectionOptions(lambda: None, ssl.create_default_context())
    clock = Clock()
    urls = [f"http://{i}.test" for i in range(number)]
    return UpstreamPool([Upstream(url, options) for url in urls], clock, lambda: 1.0), clock


def down() -> AttemptFailed:
    return AttemptFailed(UpstreamDown("down"), "down")


def aside_s(member: Member, clock: Clock) -> float:
    return member.aside_until_s - clock.now_s


def test_backoff_doubles_until_a_success() -> None:
    upstreams, clock = pool(1)
    [member] = upstreams.members
    times = []
    for _ in range(9):
        upstreams.note_failure(member, down())
        times.append(aside_s(member, clock))
    assert times == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    upstreams.note_success(member)
    assert aside_s(member, clock) <= 0
    upstreams.note_failure(member, down())
    assert aside_s(member, clock) == 0.5


def test_retry_after_is_the_least_backoff() -> None:
    upstreams, clock = pool(1)
    [member] = upstreams.members
    upstreams.note_failure(member, AttemptFailed(UpstreamDown("down"), "503", 20.0))
    assert aside_s(member, clock) == 20


def test_upstream_that_is_back_from_its_backoff_comes_after_the_others() -> None:
    upstreams, clock = pool()
    first, second = upstreams.members
    upstreams.note_failure(first, down())
    clock.now_s += 10
    second.upstream.num_running = 5
    assert upstreams.choose() is second
    assert upstreams.choose([second]) is first
    assert upstreams.choose([second, first]) is None


def test_upstream_that_fails_first_is_tried_first_if_all_are_down() -> None:
    upstreams, clock = pool()
    first, second = upstreams.members
    upstreams.note_failure(second, down())
    clock.now_s += 0.1
    upstreams.note_failure(first, down())
    assert upstreams.choose() is second


def test_rate_limited_upstream_is_not_down() -> None:
    upstreams, clock = pool()
    first, second = upstreams.members
    limited = AttemptFailed(UpstreamRateLimited("429", 5.0), "429", 5.0)
    upstreams.note_failure(first, limited)
    assert upstreams.is_available
    assert upstreams.choose() is second
    upstreams.note_failure(second, down())
    with pytest.raises(UpstreamRateLimited) as caught:
        upstreams.choose()
    assert caught.value.retry_after_s == 5
    clock.now_s += 6
    assert upstreams.choose() is first


def test_probe_may_fail_once() -> None:
    upstreams, _ = pool(1)
    [member] = upstreams.members
    states = []
    for failed in (down(), down(), None, AttemptFailed(UpstreamAccessDenied("no"), "401")):
        if failed is None:
            upstreams.note_success(member)
        else:
            upstreams.note_failed_probe(member, failed)
        states.append(member.is_down)
    assert states == [False, True, False, True]


def test_statistics_of_upstreams_with_one_address_are_added_up() -> None:
    options = ConnectionOptions(lambda: None, ssl.create_default_context())
    urls = "http://a.test/one", "http://a.test/two", "http://b.test"
    upstreams = UpstreamPool([Upstream(url, options) for url in urls])
    for number, member in enumerate(upstreams.members, start=1):
        member.num_attempts, member.num_failed, member.num_failovers = 10 * number, number, 1
    upstreams.note_failure(upstreams.members[0], down())
    upstreams.note_failure(upstreams.members[2], down())
    assert upstreams.stats() == (
        UpstreamStats("a.test", 30, 3, 2, is_up=True),
        UpstreamStats("b.test", 30, 3, 1, is_up=False),
    )


async def test_availability_follows_the_upstreams() -> None:
    upstreams, _ = pool()
    async with failsafe():
        await upstreams.wait_available(is_available=True)
        for member in upstreams.members:
            assert upstreams.is_available
            upstreams.note_failure(member, down())
            assert upstreams.is_available  # only a request has failed
        for member in upstreams.members:
            assert upstreams.is_available
            upstreams.note_failed_probe(member, down())
        await upstreams.wait_available(is_available=False)
        waiting = asyncio.ensure_future(upstreams.wait_available(is_available=True))
        await asyncio.sleep(0)
        upstreams.note_success(upstreams.members[1])
        await waiting


async def test_text_of_an_upstream_is_logged_only_at_debug(
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstreams, _ = pool(1)
    failed = AttemptFailed(UpstreamDown("down"), "HTTP status 500", text="secret")
    upstreams.note_failure(upstreams.members[0], failed)
    lines = capsys.readouterr().out.splitlines()
    [failure] = [line for line in lines if "upstream_failed" in line]
    assert "HTTP status 500" in failure
    [text] = [line for line in lines if "secret" in line]
    assert "debug" in text
