from collections.abc import Callable

import pytest
from typer.testing import Result

from tests.chatrpc_cli.fake_service import FakeService

Run = Callable[..., Result]


@pytest.mark.parametrize("command", [["models"], ["chat", "hello", "--model", "tiny"]])
def test_the_key_of_the_environment_goes_along(
    run: Run, service: FakeService, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATRPC_API_KEY", "sk-mine")
    assert run(*command).exit_code == 0
    assert set(service.keys) == {"sk-mine"}


@pytest.mark.parametrize("command", [["models"], ["chat", "hello", "--model", "tiny"]])
def test_without_a_key_none_goes_along(
    run: Run, service: FakeService, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHATRPC_API_KEY", raising=False)
    assert run(*command).exit_code == 0
    assert set(service.keys) == {None}
