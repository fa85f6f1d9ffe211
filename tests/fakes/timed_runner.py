"""A runner and a clock of a simulated machine, on which the duration of a step is known."""

import random

from service.engine.batch import Batch
from service.engine.core import Computed
from tests.fakes.runner import FakeRunner

# Costs in seconds, in the order of `StepSize.features`: those of a model of 1 billion parameters
# in int8 on two cores.
COSTS = (0.05, 0.001, 0.0028, 0.0005, 2e-6, 1e-6)


class TimedRunner(FakeRunner):
    """A `FakeRunner` whose steps take simulated time.

    Args:
        costs: The costs of a step in seconds, in the order of `StepSize.features`.
        noise: Standard deviation of the logarithm of durations.

    Attributes:
        speed: Factor of the durations.
        stalls: The numbers of the steps that take 20 times as long.
        now_s: The simulated time, in seconds.
        steps: The duration of each step and its batch.
    """

    def __init__(
        self, block_size: int, costs: tuple[float, ...] = COSTS, noise: float = 0.0
    ) -> None:
        super().__init__(block_size)
        self._costs = costs
        self._noise = noise
        self._random = random.Random(0)
        self.speed = 1.0
        self.stalls: frozenset[int] = frozenset()
        self.now_s = 0.0
        self.steps: list[tuple[float, Batch]] = []

    def clock(self) -> float:
        return self.now_s

    def run(self, batch: Batch) -> list[Computed]:
        features = batch.size.features
        step_s = sum(c * x for c, x in zip(self._costs, features, strict=True)) * self.speed
        step_s *= self._random.lognormvariate(0.0, self._noise)
        if len(self.steps) in self.stalls:
            step_s *= 20
        self.now_s += step_s
        self.steps.append((step_s, batch))
        return self.compute(batch)

    def compute(self, batch: Batch) -> list[Computed]:
        return super().run(batch)
