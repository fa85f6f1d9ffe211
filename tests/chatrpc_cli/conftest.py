from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner, Result

from chatrpc_cli.__main__ import app
from tests.chatrpc_cli.fake_service import FakeService


@pytest.fixture
def service() -> Iterator[FakeService]:
    service = FakeService()
    yield service
    service.stop()


@pytest.fixture
def run(service: FakeService) -> Callable[..., Result]:
    """Return a function that runs `chatrpc COMMAND --target FAKE ARGUMENTS...` in this process."""

    def run(command: str, *arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(
            app, [command, "--target", service.target, *arguments], input=stdin
        )

    return run
