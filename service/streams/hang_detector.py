"""Detects that an engine makes no progress."""

# Interval of the checks. It is also at most 1 / _MIN_CHECKS of the timeout.
_MAX_INTERVAL_S = 1.0
_MIN_CHECKS = 4


class HangDetector:
    """Decides at regular checks whether an engine hangs.

    The time is measured in checks and not by a clock. If the process or the machine was suspended
    for an hour, only one check was missed.

    Args:
        timeout_s: Seconds without progress after which the engine hangs.

    Attributes:
        interval_s: Seconds between two checks.
        stuck_s: Seconds without progress so far.
    """

    def __init__(self, timeout_s: float) -> None:
        self.interval_s = min(_MAX_INTERVAL_S, timeout_s / _MIN_CHECKS)
        self.stuck_s = 0.0
        self._timeout_s = timeout_s
        self._num_iterations = -1

    def check(self, num_iterations: int, *, is_idle: bool) -> bool:
        """Return True if the engine hangs.

        Args:
            num_iterations: Number of steps that the engine has completed.
            is_idle: True if the engine has no work.
        """
        is_stuck = num_iterations == self._num_iterations and not is_idle
        self.stuck_s = self.stuck_s + self.interval_s if is_stuck else 0.0
        self._num_iterations = num_iterations
        return self.stuck_s >= self._timeout_s
