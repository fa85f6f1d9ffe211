"""Whether a request may join the queue. Plain arithmetic on counts and times."""

from chatrpc_process.fairness.capacity import SharedCapacity
from service.domain.engine import Caller
from service.errors import DeadlinePassed, QueueFull

_SMOOTHING = 0.2  # the weight of the newest gap in the running mean


class Admission:
    """Counts the sequences that run, wait or are being prepared, and refuses what has no room.

    At most `max_num_seqs + max_queue_size` are inside at once. A caller may have its share of the
    slots and, of the rest, as many as are free times its weight (`SharedCapacity`), so no caller
    fills the queue by itself.

    While as many are inside as can run, the queue moves up by one with each that leaves; the mean
    gap between leavings, times the sequences ahead, is how long a newcomer waits (Little's law). A
    caller's newcomer has its own sequences ahead of it and, as callers take turns, as many of each
    other caller. A request whose deadline is nearer than that is refused now rather than dropped
    later. Gaps count without a queue too: else an estimate that refuses everyone would keep the
    queue empty and never be corrected.
    """

    def __init__(self, max_num_seqs: int, max_queue_size: int) -> None:
        self._max_num_seqs = max_num_seqs
        self._max_queue_size = max_queue_size
        self._inside = SharedCapacity(max_num_seqs + max_queue_size)
        self._weights: dict[str, int] = {}  # of the callers inside
        self._gap_since = 0.0  # when the last one left or, later, as many were inside as can run
        self._mean_gap_s = 0.0

    @property
    def capacity(self) -> int:
        """The most sequences that are inside at once."""
        return self._inside.capacity

    @property
    def num_inside(self) -> int:
        return self._inside.num_used

    def enter(self, caller: Caller, num_sequences: int, now: float) -> None:
        """Let a request in, at `now` of `time.monotonic()`; `leave` must follow.

        Raises:
            QueueFull: The queue is full, or the caller has its share of it.
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
        """Note that the engine is done with a request, however it ended, before it leaves.

        One that was refused after it had been let in takes no time of the engine.
        """
        if self.num_inside >= self._max_num_seqs:
            # As many gaps, all alike, as slots that are free now.
            gap_s = (now - self._gap_since) / num_sequences
            weight = 1 - (1 - _SMOOTHING) ** num_sequences
            self._mean_gap_s += weight * (gap_s - self._mean_gap_s)
            self._gap_since = now

    def leave(self, caller: Caller, num_sequences: int) -> None:
        """Count out a request that was let in."""
        self._inside.release(caller.name, num_sequences)
        if not self._inside.held_by(caller.name):
            del self._weights[caller.name]

    def check_deadline(
        self, caller: Caller, num_sequences: int, deadline: float | None, now: float
    ) -> None:
        """Check that a request, which is inside, will have its turn before its deadline.

        Raises:
            DeadlinePassed
        """
        wait_s = self.estimated_wait_s(caller, num_sequences)
        if deadline is not None and now + wait_s >= deadline:
            raise DeadlinePassed("The deadline is too near for the request to be served in time.")

    def estimated_wait_s(self, caller: Caller, num_own: int = 0) -> float:
        """Seconds until a request of `caller` has its turn.

        Args:
            num_own: The request's own sequences, if it is inside already.
        """
        share = self._share(caller)
        num_ahead = self.num_inside - num_own - self._max_num_seqs + 1
        num_own_ahead = self._inside.held_by(caller.name) - num_own - self._max_num_seqs * share + 1
        return max(0.0, min(num_ahead, num_own_ahead / share)) * self._mean_gap_s

    def _share(self, caller: Caller) -> float:
        """The caller's part of everything, among those inside."""
        return caller.weight / sum((self._weights | {caller.name: caller.weight}).values())
