"""Admission of requests to the queue, by its length, callers' shares and deadlines."""

from chatrpc_process.fairness.capacity import SharedCapacity
from service.domain.engine import Caller
from service.errors import DeadlinePassed, QueueFull

_SMOOTHING = 0.2  # the weight of the newest gap in the running mean


class Admission:
    """Limits the number of sequences that run, wait or are being prepared.

    At most `max_num_seqs + max_queue_size` sequences are inside at once. A caller may use its share
    of the running slots. Of the other slots it may use its weight times the number of free ones
    (`SharedCapacity`). So no caller can fill the queue by itself.

    The waiting time is estimated by Little's law: the mean time between two sequences that leave,
    times the number of sequences ahead. Callers take turns. So the sequences ahead are those of the
    caller itself, and for each other caller at most a number in proportion to its weight. If the
    deadline of a request comes before the estimated end of its wait, the request is rejected.
    """

    def __init__(self, max_num_seqs: int, max_queue_size: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_queue_size = max_queue_size
        self._inside = SharedCapacity(max_num_seqs + max_queue_size)
        self._weights: dict[str, int] = {}  # keyed by the caller's name
        # The time when the last sequence left, or when the last free running slot was taken,
        # whichever is later.
        self._gap_since = 0.0
        self._mean_gap_s = 0.0

    @property
    def capacity(self) -> int:
        """Maximum number of sequences inside."""
        return self._inside.capacity

    @property
    def num_inside(self) -> int:
        return self._inside.num_used

    def enter(self, caller: Caller, num_sequences: int, now: float) -> None:
        """Admit a request. The caller of this method must call `leave` later.

        Args:
            now: `time.monotonic()`, in seconds.

        Raises:
            QueueFull: The queue is full, or the caller has used its share of it.
        """
        num_slots = int(self._max_num_seqs * self._share(caller))
        if not self._inside.has_room(caller.name, num_sequences, caller.weight, num_slots):
            is_full = num_sequences > self._inside.num_free
            wait_s = max(1.0, self.estimated_wait_s(caller))
            raise QueueFull(self._max_queue_size, wait_s, is_share=not is_full)
        had_slot = self.num_inside < self._max_num_seqs
        self._inside.take(caller.name, num_sequences)
        self._weights[caller.name] = caller.weight
        if had_slot and self.num_inside >= self._max_num_seqs:
            self._gap_since = now

    def note_end(self, num_sequences: int, now: float) -> None:
        """Record the time at which the engine ended a request, for the estimate. Call it before
        `leave`, and not for requests that were rejected after `enter`."""
        # Gaps are measured without a queue too. Otherwise an estimate that rejects every request
        # would keep the queue empty, and would never be corrected.
        if self.num_inside >= self._max_num_seqs:
            # The gap counts once for each slot that is free now, divided evenly.
            gap_s = (now - self._gap_since) / num_sequences
            weight = 1 - (1 - _SMOOTHING) ** num_sequences
            self._mean_gap_s += weight * (gap_s - self._mean_gap_s)
            self._gap_since = now

    def leave(self, caller: Caller, num_sequences: int) -> None:
        """Remove a request that was admitted by `enter`."""
        self._inside.release(caller.name, num_sequences)
        if not self._inside.held_by(caller.name):
            del self._weights[caller.name]

    def check_deadline(
        self, caller: Caller, num_sequences: int, deadline: float | None, now: float
    ) -> None:
        """Check that an admitted request is expected to run before its deadline.

        Args:
            deadline: In seconds of `time.monotonic()`, like `now`; None if there is none.

        Raises:
            DeadlinePassed: It is expected to wait until its deadline or longer.
        """
        wait_s = self.estimated_wait_s(caller, num_sequences)
        if deadline is not None and now + wait_s >= deadline:
            raise DeadlinePassed("The deadline is too near for the request to be served in time.")

    def estimated_wait_s(self, caller: Caller, num_own: int = 0) -> float:
        """Return the expected seconds until a request of `caller` runs.

        Args:
            num_own: Number of the request's own sequences, if it is inside already.
        """
        share = self._share(caller)
        num_ahead = self.num_inside - num_own - self._max_num_seqs + 1
        num_own_ahead = self._inside.held_by(caller.name) - num_own - self._max_num_seqs * share + 1
        return max(0.0, min(num_ahead, num_own_ahead / share)) * self._mean_gap_s

    def _share(self, caller: Caller) -> float:
        """Return the caller's fraction of all capacity among the callers inside, in (0, 1]."""
        return caller.weight / sum((self._weights | {caller.name: caller.weight}).values())
