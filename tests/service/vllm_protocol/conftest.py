"""Fixtures: a server with vLLM's protocol."""

from collections.abc import AsyncIterator

import pytest

from tests.service.vllm_protocol.protocol_server import ProtocolRunning, protocol_served


@pytest.fixture
async def protocol() -> AsyncIterator[ProtocolRunning]:
    async with protocol_served() as running:
        yield running
