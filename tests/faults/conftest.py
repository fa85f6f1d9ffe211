"""Processes that end with their test."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.chat_service import FakeService
from tests.support.programs import Launch, Program, _Program


@pytest.fixture
def launch() -> Iterator[Launch]:
    launched: list[Program] = []

    def launch(program: _Program) -> _Program:
        launched.append(program)
        return program

    yield launch
    for program in launched:
        program.close()


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    async with FakeService() as service:
        yield service
