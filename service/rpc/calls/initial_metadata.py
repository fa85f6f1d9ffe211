"""The initial metadata of a stream: sent with its first chunk, or earlier if that takes long.

gRPC retries a call as long as it has received nothing. So a stream that waits in a queue can move
to another replica if this one fails. A proxy, on the other hand, has to keep its client's
connection alive, and needs to learn that the request has been admitted.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from service.rpc.calls.context import Context

# A rejected call has initial metadata too, but it is empty.
ADMITTED = (("chatrpc-admitted", "1"),)

# In seconds. It is less than the 15 s within which the gateway and some proxies expect a message.
MAX_SILENCE_S = 10.0

_Chunk = TypeVar("_Chunk")


async def with_admission_metadata(
    chunks: AsyncGenerator[_Chunk, None], context: Context
) -> AsyncGenerator[_Chunk, None]:
    """Yield the chunks. Send ADMITTED before them if the first takes longer than `MAX_SILENCE_S`.

    Closing the generator closes `chunks`.
    """
    async with aclosing(chunks):
        # This is a task, because cancelling a generator while it waits would end it.
        first = asyncio.ensure_future(anext(chunks, None))
        try:
            await asyncio.wait({first}, timeout=MAX_SILENCE_S)
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
