"""Prediction of the duration of a step, learned from the durations of earlier steps.

No torch, no clock.
"""

from collections.abc import Iterable
from operator import mul
from typing import NamedTuple

# A step of at most this many tokens is limited by reading the weights, a larger one by arithmetic.
# So the tokens beyond this number have a cost of their own.
_NUM_CHEAP_TOKENS = 8

# Costs relative to the fixed cost of a step, in the order of `StepSize.features`. They are used
# until there are measurements. They are those of int8 models of 0.1 to 1 billion parameters on a
# CPU, rounded up.
_PRIOR = (1.0, 1 / 32, 1 / 16, 1 / 32, 1 / 4096, 1 / 8192)

# Standard deviations of the prior and of the duration of a step, relative to their values.
_PRIOR_DEVIATION = 1.0
_NOISE = 0.1

# Standard deviations of the changes from one step to the next: of the machine's speed, on which all
# costs depend alike, and of each cost by itself.
_SPEED_DRIFT = 0.03
_COST_DRIFT = 0.003

# The covariance is multiplied by this number in each step. So the deviation of a cost that no step
# shows does not exceed about its value.
_MEMORY = 1 - _COST_DRIFT**2

# No cost is estimated as less than this part of what it is by the prior, relative to the others.
_MIN_COST = 0.01

# A duration that differs from the prediction by more than this many standard deviations counts as
# one that differs by this many. So a step that the machine has interrupted has little influence.
_MAX_DEVIATIONS = 3.0


class StepSize(NamedTuple):
    """The numbers on which the duration of a step depends.

    Attributes:
        num_tokens: Number of tokens that the step computes.
        num_logits: Number of tokens for which it computes logits.
        num_decode_positions: Number of cached positions that the tokens of decoding sequences
            attend to, all tokens together.
        num_prefill_positions: The same for the tokens of prompts.
    """

    num_tokens: int = 0
    num_logits: int = 0
    num_decode_positions: int = 0
    num_prefill_positions: int = 0

    @classmethod
    def total(cls, sizes: Iterable["StepSize"]) -> "StepSize":
        """Return the size of a step that consists of parts."""
        return cls(*map(sum, zip(*sizes, strict=True)))

    @property
    def features(self) -> tuple[float, float, float, float, float, float]:
        """The factors of the costs in the duration: one for each cost of a `StepTime`."""
        num_cheap = min(self.num_tokens, _NUM_CHEAP_TOKENS)
        return (
            1.0,
            num_cheap,
            self.num_tokens - num_cheap,
            self.num_logits,
            self.num_decode_positions,
            self.num_prefill_positions,
        )


class StepTime:
    """Predicts the durations of steps: a fixed cost, and costs of tokens, logits and attention.

    The costs are estimated by a Kalman filter (Kalman 1960, "A New Approach to Linear Filtering and
    Prediction Problems"), which is least squares with a limited memory. The filter assumes that the
    costs change slowly by themselves, and faster all together with the speed of the machine. So a
    change of speed that is measured in decode steps applies to prefill too. A cost that the latest
    steps do not show stays as it is.
    """

    def __init__(self) -> None:
        self._costs: list[float] = []  # in seconds, by feature; empty before the first measurement
        self._covariance: list[list[float]] = []

    @property
    def is_known(self) -> bool:
        """True if at least one step has been measured."""
        return bool(self._costs)

    def predict(self, size: StepSize) -> float:
        """Return the duration of a step in seconds.

        Before the first measurement, it is relative to the fixed cost of a step.
        """
        return _dot(self._costs or _PRIOR, size.features)

    def record(self, size: StepSize, duration_s: float) -> None:
        """Learn from the measured duration of a step.

        Args:
            duration_s: In seconds, greater than 0.
        """
        features = size.features
        if not self._costs:
            self._start(duration_s / _dot(_PRIOR, features))
        costs, predicted = self._costs, self.predict(size)
        scale = predicted / _dot(_PRIOR, features)
        drifts = [(_COST_DRIFT * scale * prior) ** 2 for prior in _PRIOR]
        # The covariance with drift is _MEMORY * covariance + _SPEED_DRIFT**2 * costs * costs^T, and
        # the other drifts on its diagonal. `direction` is its product with the features.
        direction = [
            _MEMORY * _dot(row, features) + _SPEED_DRIFT**2 * predicted * cost + drift * feature
            for row, cost, drift, feature in zip(
                self._covariance, costs, drifts, features, strict=True
            )
        ]
        variance = _dot(direction, features) + (_NOISE * predicted) ** 2
        limit = _MAX_DEVIATIONS * variance**0.5
        error = min(limit, max(-limit, duration_s - predicted))
        self._covariance = [
            [
                _MEMORY * value + _SPEED_DRIFT**2 * cost * other - along * across / variance
                for value, other, across in zip(row, costs, direction, strict=True)
            ]
            for row, cost, along in zip(self._covariance, costs, direction, strict=True)
        ]
        for i, drift in enumerate(drifts):
            self._covariance[i][i] += drift
        self._costs = [
            max(_MIN_COST * scale * prior, cost + along * error / variance)
            for prior, cost, along in zip(_PRIOR, costs, direction, strict=True)
        ]

    def _start(self, scale: float) -> None:
        """Set the costs to those of the prior, times `scale` in seconds."""
        self._costs = [scale * prior for prior in _PRIOR]
        self._covariance = [[0.0] * len(_PRIOR) for _ in _PRIOR]
        for i, cost in enumerate(self._costs):
            self._covariance[i][i] = (_PRIOR_DEVIATION * cost) ** 2


def _dot(left: Iterable[float], right: Iterable[float]) -> float:
    return sum(map(mul, left, right), 0.0)
