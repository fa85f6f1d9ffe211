"""Fixtures: the real gateway on a free port, in front of a fake service with a script."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.chat_service import FakeService
from tests.support.gateway import serving


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with FakeService() as service:
        yield service


@pytest.fixture
async def url(service: FakeService) -> AsyncIterator[str]:
    async with serving(upstream=service.target, sse_ping_interval_s=600) as url:
        yield url


@pytest.fixture
async def pinging_url(service: FakeService) -> AsyncIterator[str]:
    """Yield the URL of a gateway that sends a ping as soon as a stream waits. On a slow machine
    every stream waits, so pings may come anywhere in its streams.
    """
    async with serving(upstream=service.target, sse_ping_interval_s=0.05) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=url,
        timeout=10,
        verify=False,  # noqa: S501  # plain HTTP: loading certificates takes longer than most tests
    ) as client:
        yield client


@pytest.fixture
def body() -> dict[str, Any]:
    """Return the smallest valid request."""
    return {"model": "org/tiny", "messages": [{"role": "user", "content": "Hi"}]}
