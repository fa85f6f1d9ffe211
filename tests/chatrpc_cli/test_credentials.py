from collections.abc import Callable

import pytest
from typer.testing import Result

from tests.chatrpc_cli.fake_service import FakeService

Run = Callable[..., Result]


@pytest.mark.parametrize("command", [["models"], ["chat", "hello", "--model", "tiny"]])
def test_key_from_the_environment_is_sent(
    run: Run, service: FakeService, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHATRPC_API_KEY", "sk-mine")
    assert run(*command).exit_code == 0
    assert set(service.keys) == {"sk-mine"}


@pytest.mark.parametrize("command", [["models"], ["chat", "hello", "--model", "tiny"]])
def test_no_key_is_sent_without_one_in_the_environment(
    run: Run, service: FakeService, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHATRPC_API_KEY", raising=False)
    assert run(*command).exit_code == 0
    assert set(service.keys) == {None}
