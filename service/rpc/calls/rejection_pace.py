"""Limits how fast rejections are sent to one caller."""

import time
from collections.abc import Callable

# Maximum number of rejections per second. After a second without rejections, this number may be
# sent at once.
RATE = 50
MAX_DELAY_S = 1.0
# If there are more callers than this, those without a pending rejection are removed.
_MAX_CALLERS = 1024


class RejectionPace:
    """Delays the rejections of a caller that repeats its requests at once.

    A rejection takes almost a millisecond of the event loop. So a caller that repeats its requests
    without a pause would use all of its time. The algorithm is
    https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next_s: dict[str, float] = {}  # time of the next rejection, by caller

    def delay_s(self, caller: str) -> float:
        """Count a rejection of a caller, and return the seconds to wait before it is sent."""
        now_s = self._clock()
        due_s = max(self._next_s.get(caller, 0.0), now_s - 1.0)
        self._next_s[caller] = min(due_s + 1.0 / RATE, now_s + MAX_DELAY_S)
        if len(self._next_s) > _MAX_CALLERS:
            self._next_s = {
                name: next_s for name, next_s in self._next_s.items() if next_s > now_s - 1.0
            }
        return max(due_s - now_s, 0.0)
