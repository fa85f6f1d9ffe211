"""When a stream's initial metadata goes out: with its first chunk, unless that takes its time.

gRPC retries a call for as long as nothing has come back. So a stream that waits in a queue can go
to another replica if this one dies. On the other hand whoever stands between us and a person wants
to keep that connection warm, and needs to know that there will be no refusal any more.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from service.rpc.calls.context import Context

# Says "admitted" in so many words: a refused call has initial metadata too, though empty.
ADMITTED = (("chatrpc-admitted", "1"),)

# Below the 15 s after which the gateway, and the least patient of proxies, want to hear something.
PATIENCE_S = 10.0

_Chunk = TypeVar("_Chunk")


async def with_admission_metadata(
    chunks: AsyncGenerator[_Chunk, None], context: Context
) -> AsyncGenerator[_Chunk, None]:
    """The chunks; ADMITTED is sent ahead of them if the first is not there in `PATIENCE_S`.

    Closing it closes `chunks`.
    """
    async with aclosing(chunks):
        # A task, since a generator that is cancelled while it waits is at its end.
        first = asyncio.ensure_future(anext(chunks, None))
        try:
            await asyncio.wait({first}, timeout=PATIENCE_S)
            if not first.done():
                await context.send_initial_metadata(ADMITTED)
            chunk = await first
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        if chunk is not None:
            yield chunk
        async for chunk in chunks:
            yield chunk
