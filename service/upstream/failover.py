"""Sends a request to another upstream if the first one fails before its first output."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from service.errors import UpstreamDown
from service.upstream.failures import AttemptFailed
from service.upstream.pool import Member, UpstreamPool

_Output = TypeVar("_Output")


async def with_failover(
    pool: UpstreamPool, attempt: Callable[[Member], AsyncGenerator[_Output, None]]
) -> AsyncGenerator[_Output, None]:
    """Yield the outputs of the first attempt that has any. Each upstream is tried once.

    Closing the generator closes the attempt.

    Args:
        attempt: Yields the outputs of one upstream, and raises AttemptFailed if it fails.

    Raises:
        ChatrpcError: An upstream rejected the request; or the last of them failed, or one failed
            after its first output.
    """
    tried: list[Member] = []
    has_reconnected = False
    member = pool.choose()
    while member is not None:
        has_output = False
        try:
            async with aclosing(attempt(member)) as outputs:
                async for output in outputs:
                    if not has_output:
                        has_output = True
                        pool.note_success(member)
                    yield output
        except AttemptFailed as failed:
            if failed.is_disconnect and not has_output and not has_reconnected:
                has_reconnected = True  # the upstream may have closed an idle connection just then
                continue
            pool.note_failure(member, failed)
            tried.append(member)
            member = None if has_output else pool.choose(tried)
            if member is None:
                raise failed.error from failed
        else:
            return
    raise UpstreamDown("No upstream service can be reached. Please retry later.")
