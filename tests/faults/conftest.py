"""Processes for a test, ended with it."""

from collections.abc import AsyncIterator, Iterator
from typing import Protocol, TypeVar

import pytest

from tests.fakes.chat_service import FakeService
from tests.faults.program import Program

_Program = TypeVar("_Program", bound=Program)


class Launch(Protocol):
    """`await launch(Service()).ready()`: the process ends with the test, whatever comes of it."""

    def __call__(self, program: _Program, /) -> _Program: ...


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
