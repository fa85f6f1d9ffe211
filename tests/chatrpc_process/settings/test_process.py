"""Options in the environment."""

from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict
from structlog.testing import capture_logs

from chatrpc_process.errors import ConfigError
from chatrpc_process.settings.listener import ListenerSettings


class Settings(ListenerSettings):
    model_config = SettingsConfigDict(env_prefix="CHATRPC_TEST_")


def test_unknown_variables_are_named_with_the_closest_option(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHATRPC_TEST_ADMIN_PROT", "1")
    monkeypatch.setenv("CHATRPC_TEST_XYZZY", "sk-secret")
    with pytest.raises(ConfigError) as caught:
        Settings.load([])
    assert str(caught.value) == (
        "CHATRPC_TEST_ADMIN_PROT is not an option; did you mean CHATRPC_TEST_ADMIN_PORT?; "
        "CHATRPC_TEST_XYZZY is not an option"
    )


def test_variable_of_a_kubernetes_service_is_ignored_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "x.toml").write_text("admin_port = 7\n")
    monkeypatch.setenv("CHATRPC_TEST_CONFIG", str(tmp_path / "x.toml"))
    monkeypatch.setenv("CHATRPC_TEST_ADMIN_PORT", "tcp://10.0.0.1:8001")
    settings = Settings.load([])
    assert settings.admin_port == 7
    with capture_logs() as logs:
        settings.log_warnings()
    assert [(line["event"], line["names"]) for line in logs] == [
        ("environment_variables_ignored", ["CHATRPC_TEST_ADMIN_PORT"])
    ]


def test_environment_without_links_gives_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATRPC_TEST_ADMIN_PORT", "8001")
    settings = Settings.load([])
    assert settings.admin_port == 8001
    with capture_logs() as logs:
        settings.log_warnings()
    assert logs == []
