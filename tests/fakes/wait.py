"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Callable

# Far beyond any machine's slowness: a condition that will never hold fails its test instead of
# hanging the suite.
_FAILSAFE_S = 120


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds; raise TimeoutError if it never does."""
    async with asyncio.timeout(_FAILSAFE_S):
        while not condition():
            await asyncio.sleep(0.005)
