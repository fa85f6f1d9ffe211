"""The upstreams of one model: which of them gets a request, and which of them are put aside."""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import structlog

from chatrpc_process.logs.limited import LimitedLog
from service.domain.engine import UpstreamStats
from service.errors import ChatrpcError, UpstreamDown, UpstreamError, UpstreamRateLimited
from service.upstream.client import Upstream
from service.upstream.failures import AttemptFailed

# An upstream is put aside for twice as long after each further failure.
_FIRST_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 30.0
# A probe may fail once without consequences, because a busy server answers late.
_MAX_FAILED_PROBES = 2

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Member:
    """An upstream and its health.

    Attributes:
        aside_until_s: Time until which it gets no requests, in seconds of `time.monotonic()`.
        is_down: True after a failure, until a request or a probe succeeds. A rate limit is no
            failure.
        failure: The error of its last failure.
        num_failures: Number of failures in sequence.
        num_failed_probes: Number of failed probes in sequence.
        is_checked: True if its kind is known to be that of the others. It is checked again after
            a failure, since another server may have taken its place.
        is_excluded: True if it is of another kind than the others, and gets no requests.
        num_attempts, num_failed, num_failovers: See `UpstreamStats`.
    """

    upstream: Upstream
    aside_until_s: float = 0.0
    is_down: bool = False
    failure: ChatrpcError = field(
        default_factory=lambda: UpstreamDown("The upstream service has not been reached yet.")
    )
    num_failures: int = 0
    num_failed_probes: int = 0
    is_checked: bool = False
    is_excluded: bool = False
    num_attempts: int = 0
    num_failed: int = 0
    num_failovers: int = 0
    _went_down: asyncio.Event = field(default_factory=asyncio.Event)

    def set_down(self, *, is_down: bool) -> None:
        self.is_down = is_down
        if is_down:
            self.is_checked = False
            self._went_down.set()
        else:
            self._went_down.clear()

    async def wait_down(self) -> None:
        """Return when the upstream is down."""
        await self._went_down.wait()


class UpstreamPool:
    """Distributes requests to the upstreams and follows their health.

    Args:
        clock: Returns the time in seconds.
        jitter: Returns a factor of about 1 for each backoff.
    """

    def __init__(
        self,
        upstreams: Sequence[Upstream],
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),  # noqa: S311
    ) -> None:
        self.members = [Member(upstream) for upstream in upstreams]
        self._clock = clock
        self._jitter = jitter
        self._changed = asyncio.Event()
        self._limited_log = LimitedLog()

    @property
    def is_available(self) -> bool:
        """True unless every upstream is down and has failed a probe.

        A request may make every upstream fail. The model stays available for other requests.
        """
        return not all(member.is_down and member.num_failed_probes for member in self.members)

    def stats(self) -> tuple[UpstreamStats, ...]:
        """Return the statistics of the upstreams. Those of one host and port are added up."""
        by_name: dict[str, UpstreamStats] = {}
        for member in self.members:
            name = member.upstream.label
            before = by_name.get(name, UpstreamStats(name, is_up=False))
            by_name[name] = UpstreamStats(
                name,
                before.num_attempts + member.num_attempts,
                before.num_failed + member.num_failed,
                before.num_failovers + member.num_failovers,
                is_up=before.is_up or not (member.is_down or member.is_excluded),
            )
        return tuple(by_name.values())

    async def wait_available(self, *, is_available: bool) -> None:
        """Return when `self.is_available` has the value `is_available`."""
        while self.is_available != is_available:
            self._changed.clear()
            await self._changed.wait()

    def choose(self, tried: Collection[Member] = ()) -> Member | None:
        """Return the upstream with the fewest requests; None if there is none to try.

        Those that are put aside get no requests. If all are down, the one that has been so for
        the longest time gets the request: an attempt is a probe.

        Args:
            tried: The upstreams that have failed this request.

        Raises:
            UpstreamRateLimited: All upstreams limit requests.
        """
        now_s = self._clock()
        members = [member for member in self.members if not member.is_excluded]
        rest = [member for member in members if member not in tried]
        ready = [member for member in rest if member.aside_until_s <= now_s]
        if ready:
            # A member that is down is ready when its backoff has passed, but others come first.
            return min(ready, key=lambda member: (member.is_down, member.upstream.num_running))
        if tried or not rest:
            return None
        limited = [member for member in rest if not member.is_down]
        if limited:
            first = min(limited, key=lambda member: member.aside_until_s)
            raise UpstreamRateLimited(str(first.failure), max(0.0, first.aside_until_s - now_s))
        return min(rest, key=lambda member: member.aside_until_s)

    def note_failure(self, member: Member, failed: AttemptFailed) -> None:
        """Put an upstream aside after a failed request or probe."""
        label, reason = member.upstream.label, type(failed.error).__name__
        fields = {"upstream": label, "reason": reason, "cause": failed.cause}
        self._limited_log.write(log.warning, "upstream_failed", kind=(label, reason), **fields)
        if failed.text:
            log.debug("upstream_error_text", upstream=label, text=failed.text)
        if failed.aside_s is None:
            return
        member.failure = failed.error
        if isinstance(failed.error, UpstreamRateLimited):
            member.aside_until_s = self._clock() + failed.aside_s
            return
        backoff_s = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2**member.num_failures)
        member.num_failures = min(member.num_failures + 1, 16)
        member.aside_until_s = self._clock() + max(failed.aside_s, backoff_s * self._jitter())
        self._set_down(member, is_down=True)

    def note_success(self, member: Member) -> None:
        """Note that an upstream has served a request, or that a probe has succeeded."""
        member.num_failures = member.num_failed_probes = 0
        if member.is_down:
            member.aside_until_s = 0.0
            log.info("upstream_is_back", upstream=member.upstream.label)
            self._set_down(member, is_down=False)

    def note_failed_probe(self, member: Member, failed: AttemptFailed) -> None:
        """Put an upstream aside if several probes have failed, or if it is wrongly configured."""
        member.num_failed_probes += 1
        member.is_checked = False
        is_busy = not isinstance(failed.error, UpstreamError) and not failed.is_disconnect
        if member.is_down or not is_busy or member.num_failed_probes >= _MAX_FAILED_PROBES:
            self.note_failure(member, failed)

    def _set_down(self, member: Member, *, is_down: bool) -> None:
        member.set_down(is_down=is_down)
        self._changed.set()
