"""Processes that end with their test."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.chat_service import FakeService
from tests.support.programs import Launch, launching


@pytest.fixture
def launch() -> Iterator[Launch]:
    with launching() as launch:
        yield launch


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with FakeService() as service:
        yield service
