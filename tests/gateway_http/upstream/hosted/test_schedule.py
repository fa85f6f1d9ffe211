"""The decisions to load and unload hosted models, in examples and in random histories."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_http.upstream.hosted.schedule import Changes, Snapshot, State, decide


def loaded(name: str, *, used_s: float = 0.0, num_calls: int = 0, size: int = 1) -> Snapshot:
    return Snapshot(
        name=name,
        state=State.LOADED,
        memory_bytes=size,
        num_calls=num_calls,
        last_used_s=used_s,
        idle_timeout_s=100,
    )


def waiting(name: str, since_s: float = 0.0, size: int = 1) -> Snapshot:
    return Snapshot(name=name, state=State.UNLOADED, memory_bytes=size, waiting_since_s=since_s)


def test_model_that_fits_is_loaded() -> None:
    assert decide([loaded("a"), waiting("b")], 2, 0) == Changes(load=("b",))


def test_model_without_a_request_is_not_loaded() -> None:
    idle = Snapshot(name="a", state=State.UNLOADED, memory_bytes=1)
    assert decide([idle], 2, 0) == Changes()


def test_least_recently_used_model_makes_room() -> None:
    models = [loaded("new", used_s=5), loaded("old", used_s=1), waiting("b")]
    assert decide(models, 2, 6) == Changes(unload=("old",))


def test_no_more_models_are_unloaded_than_needed() -> None:
    models = [loaded("c", used_s=3), loaded("a", used_s=1), loaded("b", used_s=2)]
    assert decide([*models, waiting("d", size=2)], 3, 4) == Changes(unload=("a", "b"))


def test_idle_model_makes_room_before_a_busy_one() -> None:
    models = [loaded("busy", used_s=1, num_calls=1), loaded("idle", used_s=5), waiting("b")]
    assert decide(models, 2, 6) == Changes(unload=("idle",))


def test_busy_model_is_drained_if_no_other_makes_room() -> None:
    models = [loaded("busy", num_calls=2), waiting("b")]
    assert decide(models, 1, 6) == Changes(drain=frozenset({"busy"}))


def test_memory_that_is_about_to_be_free_is_waited_for() -> None:
    ending = Snapshot(name="a", state=State.UNLOADING, memory_bytes=1)
    assert decide([ending, loaded("b"), waiting("c")], 2, 0) == Changes()


def test_later_request_does_not_overtake_the_first_that_has_no_room() -> None:
    models = [loaded("a", num_calls=1), waiting("large", 1, size=3), waiting("small", 2)]
    assert decide(models, 3, 5).load == ()


def test_model_that_exceeds_the_budget_is_loaded_by_itself() -> None:
    assert decide([loaded("a"), waiting("b", size=9)], 3, 0) == Changes(unload=("a",))
    gone = Snapshot(name="a", state=State.UNLOADED, memory_bytes=1)
    assert decide([gone, waiting("b", size=9)], 3, 0) == Changes(load=("b",))


@pytest.mark.parametrize(("now_s", "unload"), [(99.9, ()), (100.0, ("a",))])
def test_idle_model_is_unloaded_after_its_timeout(now_s: float, unload: tuple[str, ...]) -> None:
    assert decide([loaded("a")], math.inf, now_s) == Changes(unload=unload)


def test_busy_model_does_not_expire() -> None:
    assert decide([loaded("a", num_calls=1)], math.inf, 1000) == Changes()


def test_models_that_outgrew_the_budget_are_unloaded_except_the_last_used() -> None:
    models = [loaded("a", used_s=1, size=4), loaded("b", used_s=2, size=4)]
    assert decide(models, 5, 3) == Changes(unload=("a",))
    assert decide(models[1:], 3, 3) == Changes()


SIZES = (0, 1, 2, 3, 5, 8)


@dataclass
class Host:
    """Carries out decisions, as `HostedModels` does, with processes that end at once."""

    budget: int
    sizes: list[int]
    now_s: float = 0.0
    states: list[State] = field(default_factory=list)
    num_calls: list[int] = field(default_factory=list)
    arrivals: list[list[float]] = field(default_factory=list)
    used_s: list[float] = field(default_factory=list)
    draining: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        count = len(self.sizes)
        self.states = [State.UNLOADED] * count
        self.num_calls = [0] * count
        self.arrivals = [[] for _ in range(count)]
        self.used_s = [0.0] * count

    def snapshots(self) -> list[Snapshot]:
        return [
            Snapshot(
                name=str(i),
                state=state,
                memory_bytes=self.sizes[i],
                num_calls=self.num_calls[i],
                waiting_since_s=min(self.arrivals[i], default=None),
                last_used_s=self.used_s[i],
                idle_timeout_s=50,
            )
            for i, state in enumerate(self.states)
        ]

    def act(self) -> None:
        """Decide, check the changes, and carry them out."""
        self.now_s += 1
        before = self.snapshots()
        changes = decide(before, self.budget, self.now_s)
        assert changes == decide(before, self.budget, self.now_s)
        for name in changes.unload:
            model = before[int(name)]
            assert model.state is State.LOADED
            assert model.num_calls == 0
            self.states[int(name)] = State.UNLOADING
        for name in changes.load:
            assert before[int(name)].state is State.UNLOADED
            assert before[int(name)].waiting_since_s is not None
            others = [i for i, state in enumerate(self.states) if state is not State.UNLOADED]
            used = sum(self.sizes[i] for i in others) + self.sizes[int(name)]
            assert used <= self.budget or not others
            self.states[int(name)] = State.LOADING
        for name in changes.drain:
            assert before[int(name)].num_calls > 0
        self._check_order(before, changes)
        self.draining = changes.drain
        for i, state in enumerate(self.states):
            if state is State.LOADED and str(i) not in self.draining:
                self.grant(i)

    def _check_order(self, before: list[Snapshot], changes: Changes) -> None:
        """Check that of the idle models those are unloaded that were used the longest time ago."""
        idle = [model for model in before if model.is_idle and model.name not in changes.unload]
        for name in changes.unload:
            unloaded = before[int(name)]
            has_expired = unloaded.expires_s <= self.now_s
            assert has_expired or all(unloaded.last_used_s <= each.last_used_s for each in idle)

    def grant(self, i: int) -> None:
        self.num_calls[i] += len(self.arrivals[i])
        self.arrivals[i].clear()

    def arrive(self, i: int) -> None:
        if self.states[i] is State.LOADED and str(i) not in self.draining:
            self.num_calls[i] += 1
        else:
            self.arrivals[i].append(self.now_s)

    def leave(self, i: int) -> None:
        if self.arrivals[i]:
            self.arrivals[i].pop()

    def finish(self, i: int) -> None:
        if self.num_calls[i]:
            self.num_calls[i] -= 1
            self.used_s[i] = self.now_s

    def progress(self, i: int) -> None:
        """Complete a load or an unload."""
        if self.states[i] is State.LOADING:
            self.states[i] = State.LOADED
            self.used_s[i] = self.now_s
            self.grant(i)
        elif self.states[i] is State.UNLOADING:
            self.states[i] = State.UNLOADED

    def die(self, i: int) -> None:
        if self.states[i] is State.LOADED:
            self.states[i] = State.UNLOADED
            self.num_calls[i] = 0


EVENTS = st.tuples(
    st.sampled_from(["arrive", "arrive", "leave", "finish", "progress", "die", "act"]),
    st.integers(0, 3),
)


@settings(max_examples=200, deadline=None)
@given(
    budget=st.integers(1, 10),
    sizes=st.lists(st.sampled_from(SIZES), min_size=4, max_size=4),
    events=st.lists(EVENTS, max_size=60),
)
def test_budget_order_and_progress_in_random_histories(
    budget: int, sizes: list[int], events: list[tuple[str, int]]
) -> None:
    host = Host(budget, sizes)
    for event, i in events:
        if event != "act":
            getattr(host, event)(i)
        host.act()
    # If running requests end and processes make progress, every waiting request is served.
    for _ in range(100):
        if not any(host.arrivals):
            break
        for i in range(len(sizes)):
            host.progress(i)
            host.act()
            host.finish(i)
            host.act()
    assert not any(host.arrivals)


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(4)))
def test_waiting_models_are_loaded_in_the_order_of_arrival(order: list[int]) -> None:
    host = Host(1, [1] * 4)
    for i in order:
        host.now_s += 1
        host.arrive(i)
    served: list[int] = []
    while len(served) < len(order):
        host.act()
        [loading] = [i for i, state in enumerate(host.states) if state is State.LOADING]
        served.append(loading)
        host.progress(loading)
        assert host.num_calls[loading] == 1
        host.act()
        host.finish(loading)
        host.act()
        host.progress(loading)
    assert served == order
