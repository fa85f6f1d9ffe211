"""Old names of options."""

from pathlib import Path
from typing import ClassVar

import pytest
from pydantic_settings import SettingsConfigDict
from structlog.testing import capture_logs

from chatrpc_process.errors import ConfigError
from chatrpc_process.settings.process import ProcessSettings
from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings


class Settings(ProcessSettings):
    model_config = SettingsConfigDict(env_prefix="CHATRPC_TEST_")
    new_names: ClassVar = {"grace_s": "drain_timeout_s"}

    drain_timeout_s: float = 30.0


RENAMED = [
    (kind, old, new)
    for kind in (ServiceSettings, GatewaySettings, Settings)
    for old, new in kind.new_names.items()
]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def toml_file(directory: Path, text: str) -> str:
    path = directory / "options.toml"
    path.write_text(text)
    return str(path)


def deprecated_names(settings: ProcessSettings) -> list[tuple[str, str]]:
    with capture_logs() as logs:
        settings.log_warnings()
    return [
        (line["name"], line["new_name"])
        for line in logs
        if line["event"] == "option_name_deprecated"
    ]


@pytest.mark.parametrize("form", ["two words", "one word"])
@pytest.mark.parametrize(("kind", "old", "new"), RENAMED)
def test_old_name_on_the_command_line_sets_the_option(
    kind: type[ProcessSettings], old: str, new: str, form: str
) -> None:
    arguments = [flag(old), "7"] if form == "two words" else [f"{flag(old)}=7"]
    settings = kind.load(arguments)
    assert getattr(settings, new) == 7
    assert deprecated_names(settings) == [(old, new)]


@pytest.mark.parametrize(("kind", "old", "new"), RENAMED)
def test_old_name_in_the_environment_sets_the_option(
    kind: type[ProcessSettings], old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kind.model_config["env_prefix"] + old.upper(), "7")
    settings = kind.load([])
    assert getattr(settings, new) == 7
    assert deprecated_names(settings) == [(old, new)]


@pytest.mark.parametrize(("kind", "old", "new"), RENAMED)
def test_old_name_in_the_file_sets_the_option(
    kind: type[ProcessSettings], old: str, new: str, tmp_path: Path
) -> None:
    settings = kind.load(["--config", toml_file(tmp_path, f"{old} = 7\n")])
    assert getattr(settings, new) == 7
    assert deprecated_names(settings) == [(old, new)]


def test_new_name_gives_no_warning() -> None:
    assert deprecated_names(Settings.load(["--drain-timeout-s", "7"])) == []


def test_both_names_with_different_values_on_the_command_line_are_rejected() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(["--drain-timeout-s", "7", "--grace-s=8"])
    assert str(caught.value) == (
        "--drain-timeout-s and --grace-s have different values. "
        "--grace-s is the old name of --drain-timeout-s: remove it."
    )


def test_both_names_with_different_values_in_the_environment_are_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHATRPC_TEST_GRACE_S", "7")
    monkeypatch.setenv("CHATRPC_TEST_DRAIN_TIMEOUT_S", "8")
    expected = "CHATRPC_TEST_DRAIN_TIMEOUT_S and CHATRPC_TEST_GRACE_S have different values"
    with pytest.raises(ConfigError, match=expected):
        Settings.load([])


def test_both_names_with_different_values_in_the_file_are_rejected(tmp_path: Path) -> None:
    path = toml_file(tmp_path, "grace_s = 7\ndrain_timeout_s = 8\n")
    with pytest.raises(ConfigError, match="drain_timeout_s and grace_s have different values"):
        Settings.load(["--config", path])


def test_both_names_with_the_same_value_set_the_option() -> None:
    assert Settings.load(["--drain-timeout-s", "7", "--grace-s", "7"]).drain_timeout_s == 7


def test_old_name_on_the_command_line_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHATRPC_TEST_DRAIN_TIMEOUT_S", "8")
    assert Settings.load(["--grace-s", "7"]).drain_timeout_s == 7
