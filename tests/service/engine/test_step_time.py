import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.step_time import StepSize, StepTime
from tests.fakes.timed_runner import COSTS

DECODE = StepSize(4, 4, 1200, 0)


def duration(size: StepSize, costs: tuple[float, ...] = COSTS) -> float:
    return sum(cost * x for cost, x in zip(costs, size.features, strict=True))


def decode(num_sequences: int, context: int) -> StepSize:
    return StepSize(num_sequences, num_sequences, num_sequences * context, 0)


def prefill(num_tokens: int, start: int) -> StepSize:
    return StepSize(num_tokens, 1, 0, num_tokens * start + num_tokens * (num_tokens + 1) // 2)


def mixed(rng: random.Random) -> StepSize:
    sizes = [decode(rng.choice([1, 4, 8, 24]), rng.randrange(50, 4000))]
    if rng.random() < 0.3:
        sizes.append(prefill(rng.randrange(16, 200), rng.randrange(4000)))
    return StepSize.total(sizes)


def learned(num_steps: int = 400, *, noise: float = 0.05, stalls: float = 0.0) -> StepTime:
    """Return the model of a machine on which steps of many sizes were measured."""
    rng = random.Random(1)
    times = StepTime()
    times.record(prefill(512, 0), duration(prefill(512, 0)))
    for _ in range(num_steps):
        size = mixed(rng)
        factor = rng.lognormvariate(0.0, noise) * (20 if rng.random() < stalls else 1)
        times.record(size, duration(size) * factor)
    return times


def error(times: StepTime, size: StepSize, speed: float = 1.0) -> float:
    return times.predict(size) / (duration(size) * speed) - 1


def test_total_of_no_parts_is_empty() -> None:
    assert StepSize.total([]) == StepSize()


def test_total_adds_the_parts() -> None:
    assert StepSize.total([decode(2, 10), prefill(3, 1)]) == StepSize(5, 3, 20, 9)


def test_times_are_unknown_before_the_first_measurement() -> None:
    times = StepTime()
    assert not times.is_known
    assert times.predict(decode(8, 100)) > times.predict(decode(1, 100)) > 1


def test_first_measurement_is_predicted() -> None:
    times = StepTime()
    times.record(DECODE, 0.1)
    assert times.is_known
    assert times.predict(DECODE) == pytest.approx(0.1)


def test_first_prompt_predicts_later_chunks() -> None:
    times = StepTime()
    times.record(prefill(512, 0), duration(prefill(512, 0)))
    assert abs(error(times, prefill(64, 0))) < 0.25
    assert abs(error(times, StepSize.total([DECODE, prefill(40, 0)]))) < 0.25


def test_predictions_are_within_the_noise_of_the_measurements() -> None:
    times, rng = learned(), random.Random(2)
    errors = [abs(error(times, mixed(rng))) for _ in range(300)]
    assert median(errors) < 0.04
    assert max(errors) < 0.25


def test_stalled_steps_hardly_change_predictions() -> None:
    times, rng = learned(stalls=0.02), random.Random(2)
    assert median(abs(error(times, mixed(rng))) for _ in range(300)) < 0.15
    times = learned()
    before = times.predict(DECODE)
    times.record(DECODE, 60.0)
    assert times.predict(DECODE) < 1.25 * before
    for _ in range(20):
        times.record(DECODE, duration(DECODE))
    assert abs(error(times, DECODE)) < 0.05
    assert abs(error(times, prefill(64, 1000))) < 0.1


@pytest.mark.parametrize("speed", [0.5, 3.0])
def test_change_of_speed_in_decode_steps_applies_to_prefill(speed: float) -> None:
    times = learned()
    for _ in range(40):
        times.record(DECODE, duration(DECODE) * speed)
    assert abs(error(times, DECODE, speed)) < 0.05
    assert abs(error(times, prefill(64, 1000), speed)) < 0.2


def test_long_decoding_does_not_change_the_costs_of_prefill() -> None:
    times, rng = learned(), random.Random(3)
    for _ in range(3000):
        times.record(DECODE, duration(DECODE) * rng.lognormvariate(0.0, 0.05))
    assert abs(error(times, StepSize.total([DECODE, prefill(64, 1000)]))) < 0.25


sizes = st.builds(
    lambda single, chunk: StepSize.total([single, chunk]),
    st.builds(decode, st.integers(1, 256), st.integers(0, 100_000)),
    st.just(StepSize()) | st.builds(prefill, st.integers(1, 4096), st.integers(0, 100_000)),
)


@given(st.lists(st.tuples(sizes, st.floats(1e-4, 1e3)), min_size=1, max_size=60))
def test_any_durations_give_positive_predictions_that_grow_with_the_step(
    steps: list[tuple[StepSize, float]],
) -> None:
    times = StepTime()
    for size, duration_s in steps:
        times.record(size, duration_s)
        predicted = times.predict(size)
        assert 0 < predicted < 1e9
        for more in (decode(1, 10), prefill(5, 100)):
            assert times.predict(StepSize.total([size, more])) > predicted
