import pytest

from chatrpc_process.keys import Key
from chatrpc_process.quotas import QuotaExceeded, Quotas


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_key(name: str = "a", **limits: int) -> Key:
    return Key.model_validate({"name": name, "sha256": "0" * 64, **limits})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def refusal(quotas: Quotas, key: Key) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught, quotas.request(key):
        pass
    return caught.value


def test_a_key_without_limits_has_none(quotas: Quotas) -> None:
    key = make_key()
    for _ in range(1000):
        with quotas.request(key):
            quotas.spend(key, 10**9)
    assert quotas.requests(key) is None
    assert quotas.tokens(key) is None


def test_requests_come_back_evenly(quotas: Quotas, clock: Clock) -> None:
    key = make_key(requests_per_minute=6)
    for left in (5, 4, 3, 2, 1, 0):
        with quotas.request(key):
            standing = quotas.requests(key)
            assert standing is not None
            assert (standing.limit, standing.remaining) == (6, left)
            assert standing.reset_s == pytest.approx(10.0 * (6 - left))
    error = refusal(quotas, key)
    assert (error.what, error.limit) == ("requests", 6)
    assert error.retry_after_s == pytest.approx(10.0)
    clock.now_s += error.retry_after_s
    with quotas.request(key):
        pass
    assert refusal(quotas, key).what == "requests"


def test_tokens_may_be_overdrawn_and_must_be_filled_again(quotas: Quotas, clock: Clock) -> None:
    key = make_key(tokens_per_minute=60)
    with quotas.request(key):
        quotas.spend(key, 100)  # 40 more than there are
    error = refusal(quotas, key)
    assert error.what == "tokens"
    assert error.retry_after_s == pytest.approx(41.0)
    standing = quotas.tokens(key)
    assert standing is not None
    assert standing.remaining == 0
    assert standing.reset_s == pytest.approx(100.0)
    clock.now_s += 41.0
    with quotas.request(key):
        pass


def test_a_refused_request_costs_nothing(quotas: Quotas) -> None:
    key = make_key(requests_per_minute=5, tokens_per_minute=1)
    with quotas.request(key):
        quotas.spend(key, 2)
    for _ in range(10):
        assert refusal(quotas, key).what == "tokens"
    standing = quotas.requests(key)
    assert standing is not None
    assert standing.remaining == 4


def test_only_so_many_run_at_once_however_they_end(quotas: Quotas) -> None:
    key = make_key(max_concurrent_requests=2)
    with quotas.request(key):
        with pytest.raises(ZeroDivisionError), quotas.request(key):
            assert refusal(quotas, key).what == "concurrent requests"
            _ = 1 / 0
        with quotas.request(key):
            assert refusal(quotas, key).limit == 2
    with quotas.request(key):
        pass


def test_keys_do_not_share_what_they_have(quotas: Quotas) -> None:
    one, other = make_key("a", requests_per_minute=1), make_key("b", requests_per_minute=1)
    with quotas.request(one), quotas.request(other):
        pass
    refusal(quotas, one)
    refusal(quotas, other)


def test_it_never_holds_more_than_a_minutes_worth(quotas: Quotas, clock: Clock) -> None:
    key = make_key(requests_per_minute=2)
    clock.now_s += 10_000.0
    for _ in range(2):
        with quotas.request(key):
            pass
    refusal(quotas, key)


def test_a_changed_limit_holds_at_once(quotas: Quotas) -> None:
    with quotas.request(make_key(requests_per_minute=1)):
        pass
    refusal(quotas, make_key(requests_per_minute=1))
    with quotas.request(make_key(requests_per_minute=2)):
        pass
