"""Whether a request may join the queue. Plain arithmetic on counts and times."""

from service.errors import ContextLengthExceeded, DeadlinePassed, QueueFull
from service.types import Request

_SMOOTHING = 0.2  # the weight of the newest gap in the running mean


class Admission:
    """Counts the sequences inside and refuses requests that could not be served.

    At most `max_num_seqs + max_queue_size` are inside at once; a request for more than that comes
    in when it is alone. While as many are inside as can run, the queue moves up one place with each
    that leaves; the mean gap between leavings, times the places ahead, is how long a newcomer will
    wait (Little's law). A request whose deadline is
    nearer than that is refused now rather than dropped later. Gaps count without a queue too: else
    an estimate that refuses everyone would keep the queue empty and never be corrected.
    """

    def __init__(self, max_num_seqs: int, max_queue_size: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_queue_size = max_queue_size
        self._num_inside = 0
        self._gap_since = 0.0  # when the last one left or, later, as many were inside as can run
        self._mean_gap_s = 0.0

    @property
    def num_inside(self) -> int:
        return self._num_inside

    def enter(self, request: Request, max_model_len: int, now: float) -> None:
        """Let a request in, at `now` of `time.monotonic()`; `leave` must follow.

        Raises:
            ContextLengthExceeded: the prompt fills the whole context.
            QueueFull: as many wait as may.
            DeadlinePassed: its turn would come too late.
        """
        if len(request.prompt_token_ids) >= max_model_len:
            raise ContextLengthExceeded(len(request.prompt_token_ids), max_model_len)
        self.check_room(self._num_places(request))
        wait_s = self.estimated_wait_s
        if request.deadline is not None and now + wait_s >= request.deadline:
            raise DeadlinePassed("The deadline is too near for the request to be served in time.")
        had_place = self._num_inside < self._max_num_seqs
        self._num_inside += self._num_places(request)
        if had_place and self._num_inside >= self._max_num_seqs:
            self._gap_since = now

    def check_room(self, num_places: int = 1) -> None:
        """Raise QueueFull if fewer places are free."""
        if self._num_inside + num_places > self._max_num_seqs + self._max_queue_size:
            raise QueueFull(self._max_queue_size, retry_after_s=max(1.0, self.estimated_wait_s))

    def leave(self, request: Request, now: float) -> None:
        """Count out a request that was let in, however it ended."""
        num_places = self._num_places(request)
        if self._num_inside >= self._max_num_seqs:
            # As many gaps, all alike, as places that are free now.
            gap_s = (now - self._gap_since) / num_places
            weight = 1 - (1 - _SMOOTHING) ** num_places
            self._mean_gap_s += weight * (gap_s - self._mean_gap_s)
            self._gap_since = now
        self._num_inside -= num_places

    def _num_places(self, request: Request) -> int:
        return min(request.n, self._max_num_seqs + self._max_queue_size)

    @property
    def estimated_wait_s(self) -> float:
        """How long a request that came now would wait for its turn."""
        num_ahead = self._num_inside - self._max_num_seqs + 1
        return max(0, num_ahead) * self._mean_gap_s
