"""Fixtures: the real gateway on a free port, in front of a fake service with a script.

The clients have an environment of their own, which `make test-clients` installs.
"""

from collections.abc import AsyncIterator
from importlib.util import find_spec

import pytest

from tests.fakes.chat_service import FakeService
from tests.support.gateway import serving

# The modules import clients that other environments do not have.
collect_ignore_glob = [] if find_spec("langchain_openai") else ["test_*.py"]


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with FakeService() as service:
        yield service


@pytest.fixture
async def url(service: FakeService) -> AsyncIterator[str]:
    async with serving(upstream=service.target) as url:
        yield url
