import math
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chatrpc_process.access.cost import Cost
from chatrpc_process.access.keys import Key
from chatrpc_process.access.quotas import NeverAdmitted, QuotaExceeded, Quotas, Reservation


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_key(name: str = "a", **options: Any) -> Key:
    return Key.model_validate({"name": name, "sha256": "0" * 64, **options})


def cost(prompt: int = 0, output: int = 0, *, n: int = 1, least: int | None = None) -> Cost:
    least = prompt + output if least is None else least
    return Cost(n, prompt, output, least, sequences_field="n", tokens_field="max_tokens")


ONE = cost()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def refusal(quotas: Quotas, key: Key, wanted: Cost = ONE) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught, quotas.admit(key, wanted):
        pass
    return caught.value


def use(quotas: Quotas, key: Key, num_tokens: int) -> None:
    with quotas.admit(key, cost(num_tokens)):
        pass


def left(quotas: Quotas, key: Key) -> int:
    state = quotas.tokens(key)
    assert state is not None
    return state.remaining


def test_key_without_limits_is_never_rejected(quotas: Quotas) -> None:
    key = make_key()
    for _ in range(1000):
        use(quotas, key, 10**9)
    assert quotas.requests(key) is None
    assert quotas.tokens(key) is None


def test_requests_refill_evenly(quotas: Quotas, clock: Clock) -> None:
    key = make_key(requests_per_minute=6)
    for remaining in (5, 4, 3, 2, 1, 0):
        with quotas.admit(key, ONE):
            state = quotas.requests(key)
            assert state is not None
            assert (state.limit, state.remaining) == (6, remaining)
            assert state.reset_s == pytest.approx(10.0 * (6 - remaining))
    error = refusal(quotas, key)
    assert (error.what, error.limit) == ("requests", 6)
    assert error.retry_after_s == pytest.approx(10.0)
    clock.now_s += error.retry_after_s
    use(quotas, key, 0)
    assert refusal(quotas, key).what == "requests"


def test_each_sequence_counts_as_a_request(quotas: Quotas, clock: Clock) -> None:
    key = make_key(requests_per_minute=6)
    with quotas.admit(key, cost(n=4)):
        pass
    assert refusal(quotas, key, cost(n=3)).retry_after_s == pytest.approx(10.0)
    with quotas.admit(key, cost(n=2)):
        pass
    assert refusal(quotas, key).retry_after_s == pytest.approx(10.0)


def test_concurrent_requests_share_the_remaining_tokens(quotas: Quotas) -> None:
    """Send 24 requests of 134 tokens at once with a key of 50 tokens a minute."""
    key, admitted = make_key(tokens_per_minute=50), 0
    waits_s: list[float] = []
    with ExitStack() as running:
        for _ in range(24):
            try:
                running.enter_context(quotas.admit(key, cost(34, 100)))
                admitted += 1
            except QuotaExceeded as error:
                waits_s.append(error.retry_after_s)
    assert admitted == 1
    assert len(waits_s) == 23
    assert max(waits_s) <= 180


def test_requests_below_the_limit_run_at_once(quotas: Quotas) -> None:
    key = make_key(tokens_per_minute=1000)
    with ExitStack() as running:
        for _ in range(10):
            running.enter_context(quotas.admit(key, cost(90, 10)))
        assert refusal(quotas, key, cost(90, 10)).what == "tokens"


def test_unused_reservation_is_returned_at_the_end(quotas: Quotas) -> None:
    key = make_key(tokens_per_minute=1000)
    with quotas.admit(key, cost(500, 400)) as reservation:
        assert left(quotas, key) == 100
        reservation.resize(20 + 400)
        assert left(quotas, key) == 580
        reservation.resize(20 + 7)
    assert left(quotas, key) == 973


def test_reservation_without_a_settlement_is_charged(quotas: Quotas) -> None:
    key = make_key(tokens_per_minute=1000)
    with pytest.raises(ZeroDivisionError), quotas.admit(key, cost(500, 400)):
        _ = 1 / 0
    assert left(quotas, key) == 100


def test_estimate_above_the_limit_does_not_lock_a_client_out(quotas: Quotas) -> None:
    """The prompts have fewer tokens than bytes."""
    key = make_key(tokens_per_minute=1000)
    for _ in range(3):
        with quotas.admit(key, cost(1200, 50, least=200)) as reservation:
            reservation.resize(300)
    assert left(quotas, key) == 100


def test_debt_is_paid_before_the_next_request(quotas: Quotas, clock: Clock) -> None:
    key = make_key(tokens_per_minute=60)
    use(quotas, key, 100)  # 40 more than remain
    error = refusal(quotas, key, cost(1))
    assert error.what == "tokens"
    assert error.retry_after_s == pytest.approx(41.0)
    state = quotas.tokens(key)
    assert state is not None
    assert state.remaining == 0
    assert state.reset_s == pytest.approx(100.0)
    clock.now_s += 41.0
    use(quotas, key, 1)


def test_request_of_three_minutes_needs_a_full_bucket(quotas: Quotas, clock: Clock) -> None:
    key = make_key(tokens_per_minute=60)
    use(quotas, key, 6)
    assert refusal(quotas, key, cost(180)).retry_after_s == pytest.approx(6.0)
    clock.now_s += 6.0
    use(quotas, key, 180)
    assert refusal(quotas, key, cost(1)).retry_after_s == pytest.approx(121.0)


def test_debt_is_at_most_two_minutes_of_refill(quotas: Quotas) -> None:
    key = make_key(tokens_per_minute=60)
    with quotas.admit(key, cost(10)) as reservation:
        reservation.resize(10**9)
    assert refusal(quotas, key, cost(1)).retry_after_s == pytest.approx(121.0)


@pytest.mark.parametrize(
    ("options", "wanted", "said", "field"),
    [
        ({"tokens_per_minute": 60}, cost(181), "may cost 181 tokens", "max_tokens"),
        ({"max_concurrent_requests": 3}, cost(n=96), "counts as 96", "n"),
        ({"requests_per_minute": 3}, cost(n=4), "counts as 4", "n"),
    ],
)
def test_request_above_a_limit_is_never_admitted(
    quotas: Quotas, options: dict[str, int], wanted: Cost, said: str, field: str
) -> None:
    key = make_key("a", **options)
    with pytest.raises(NeverAdmitted, match=said) as caught, quotas.admit(key, wanted):
        pass
    assert "It can never be admitted." in str(caught.value)
    assert caught.value.field == field
    use(quotas, key, 1)  # the rejected request has cost nothing


def test_rejected_request_costs_nothing(quotas: Quotas) -> None:
    key = make_key(requests_per_minute=5, tokens_per_minute=1)
    use(quotas, key, 2)
    for _ in range(10):
        assert refusal(quotas, key, cost(1)).what == "tokens"
    state = quotas.requests(key)
    assert state is not None
    assert state.remaining == 4


def test_request_without_tokens_needs_none(quotas: Quotas) -> None:
    """A request for tokenization has no cost in tokens."""
    key = make_key(tokens_per_minute=1)
    use(quotas, key, 2)
    use(quotas, key, 0)


def test_sequences_are_limited_however_they_end(quotas: Quotas) -> None:
    key = make_key(max_concurrent_requests=4)
    with quotas.admit(key, cost(n=2)):
        assert refusal(quotas, key, cost(n=3)).what == "concurrent requests"
        with pytest.raises(ZeroDivisionError), quotas.admit(key, cost(n=2)):
            assert refusal(quotas, key).limit == 4
            _ = 1 / 0
        with quotas.admit(key, cost(n=2)):
            assert refusal(quotas, key).limit == 4
    with quotas.admit(key, cost(n=4)):
        pass


def test_owners_do_not_share_their_limits(quotas: Quotas) -> None:
    one, other = make_key("a", requests_per_minute=1), make_key("b", requests_per_minute=1)
    with quotas.admit(one, ONE), quotas.admit(other, ONE):
        pass
    refusal(quotas, one)
    refusal(quotas, other)


def test_keys_of_one_owner_share_their_limits(quotas: Quotas) -> None:
    limits: dict[str, Any] = {
        "requests_per_minute": 2,
        "tokens_per_minute": 10,
        "max_concurrent_requests": 1,
    }
    old, new = make_key("a", **limits), make_key("a-2", owner="a", **limits)
    with quotas.admit(old, cost(4)):
        assert refusal(quotas, new).what == "concurrent requests"
    with quotas.admit(new, cost(4)):
        pass
    assert left(quotas, old) == left(quotas, new) == 2
    assert refusal(quotas, old).what == "requests"


def test_bucket_has_at_most_the_refill_of_a_minute(quotas: Quotas, clock: Clock) -> None:
    key = make_key(requests_per_minute=2)
    clock.now_s += 10_000.0
    use(quotas, key, 0)
    use(quotas, key, 0)
    refusal(quotas, key)


def test_changed_limit_applies_at_once(quotas: Quotas) -> None:
    use(quotas, make_key(requests_per_minute=1), 0)
    refusal(quotas, make_key(requests_per_minute=1))
    use(quotas, make_key(requests_per_minute=2), 0)


class Admitted:
    """An admitted request, with the numbers of its events."""

    def __init__(self, begin: int, begin_s: float, reserved: int, used: int) -> None:
        self.begin = begin
        self.begin_s = begin_s
        self.end = math.inf
        self.reserved = reserved
        self.used = used
        self.context = ExitStack()


class Interleavings(RuleBasedStateMachine):
    """Requests that begin, are corrected and end in any order, with any time between these events.

    The cost of every request is at most its estimate, as for an estimate from a prompt's bytes.
    """

    limit = 100

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.quotas = Quotas(self.clock)
        self.key = make_key(tokens_per_minute=self.limit)
        self.running: list[tuple[Admitted, Reservation]] = []
        self.admitted: list[Admitted] = []
        self.num_steps = 0

    @rule(
        prompt=st.integers(0, 150),
        share=st.floats(0.125, 1),
        output=st.integers(0, 50),
        used=st.floats(0, 1),
    )
    def begin(self, prompt: int, share: float, output: int, used: float) -> None:
        self.num_steps += 1
        wanted = cost(prompt + 1, output, least=prompt // 8 + output)
        tokens = int(prompt * share) + int(output * used)
        request = Admitted(self.num_steps, self.clock.now_s, wanted.num_tokens, tokens)
        try:
            reservation = request.context.enter_context(self.quotas.admit(self.key, wanted))
        except QuotaExceeded as error:
            self.retry_after_s = error.retry_after_s
            return
        self.admitted.append(request)
        self.running.append((request, reservation))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), is_known=st.booleans())
    def end(self, data: st.DataObject, is_known: bool) -> None:
        self.num_steps += 1
        request, reservation = self.running.pop(
            data.draw(st.integers(0, len(self.running) - 1), label="which")
        )
        request.end = self.num_steps
        if is_known:  # otherwise its client has left, and the whole reservation is charged
            reservation.resize(request.used)
        else:
            request.used = request.reserved
        request.context.close()

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @invariant()
    def waits_and_debts_are_bounded(self) -> None:
        state = self.quotas.tokens(self.key)
        assert state is not None
        assert state.reset_s <= 180
        assert getattr(self, "retry_after_s", 1) <= 180

    def teardown(self) -> None:
        """Check every period that begins with a request and ends with another one."""
        for request, _ in self.running:
            request.context.close()
            request.used = request.reserved
        for i, first in enumerate(self.admitted):
            before = self.admitted[:i]
            put_back = sum(r.reserved - r.used for r in before if r.end > first.begin)
            tokens = 0
            for request in self.admitted[i:]:
                refilled = (request.begin_s - first.begin_s) * self.limit / 60
                assert tokens <= self.limit + refilled + put_back + 1e-6
                tokens += request.used


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(stateful_step_count=40)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400), st.floats(0, 60)), max_size=20))
def test_retry_after_is_sufficient_for_a_single_client(
    requests: list[tuple[int, int, float]],
) -> None:
    clock = Clock()
    quotas, key = Quotas(clock), make_key(tokens_per_minute=100, requests_per_minute=30)
    for least, more, seconds in requests:
        clock.now_s += seconds
        wanted = cost(least + more, least=least)
        try:
            with quotas.admit(key, wanted):
                pass
        except NeverAdmitted:
            assert least > 300
        except QuotaExceeded as error:
            clock.now_s += math.nextafter(error.retry_after_s + 1e-6, math.inf)
            with quotas.admit(key, wanted):
                pass
