"""Waiting for a condition, never for a time."""

import asyncio
from collections.abc import Callable


async def until(condition: Callable[[], bool]) -> None:
    """Return as soon as `condition` holds. The test's own timeout is the only limit."""
    while not condition():
        await asyncio.sleep(0.005)
