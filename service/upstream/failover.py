"""Sends a request to another upstream if the first one fails before its first output."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from service.errors import UpstreamDown, UpstreamInvalidResponse
from service.upstream.failures import AttemptFailed
from service.upstream.pool import Member, UpstreamPool

_Output = TypeVar("_Output")


async def with_failover(
    pool: UpstreamPool, attempt: Callable[[Member], AsyncGenerator[_Output, None]]
) -> AsyncGenerator[_Output, None]:
    """Yield the outputs of the first attempt that has any. Each upstream is tried once.

    Closing the generator closes the attempt.

    Args:
        attempt: Yields the outputs of one upstream. If it fails, it raises AttemptFailed, or
            UpstreamDown or UpstreamInvalidResponse if the response cannot be used.

    Raises:
        ChatrpcError: An upstream rejected the request; or the last of them failed, or one failed
            after its first output.
    """
    tried: list[Member] = []
    has_reconnected = False
    member = pool.choose()
    while member is not None:
        has_output = False
        member.num_attempts += 1
        try:
            async with aclosing(attempt(member)) as outputs:
                async for output in outputs:
                    if not has_output:
                        has_output = True
                        pool.note_success(member)
                    yield output
        except (AttemptFailed, UpstreamDown, UpstreamInvalidResponse) as error:
            failed = error if isinstance(error, AttemptFailed) else AttemptFailed(error, str(error))
            if failed.is_disconnect and not has_output and not has_reconnected:
                has_reconnected = True  # the upstream may have closed an idle connection just then
                continue
            member.num_failed += 1
            pool.note_failure(member, failed)
            tried.append(member)
            following = None if has_output else pool.choose(tried)
            if following is None:
                raise failed.error from failed
            member.num_failovers += 1
            member = following
        else:
            return
    raise UpstreamDown("No upstream service can be reached. Please retry later.")


async def first_result(
    pool: UpstreamPool, attempt: Callable[[Member], Awaitable[_Output]]
) -> _Output:
    """Return the result of the first attempt that succeeds; see `with_failover`."""

    async def outputs(member: Member) -> AsyncGenerator[_Output, None]:
        yield await attempt(member)

    async with aclosing(with_failover(pool, outputs)) as results:
        return await anext(results)
