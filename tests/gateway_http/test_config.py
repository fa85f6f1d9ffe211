from pathlib import Path

import pytest

from chatrpc_process.errors import ConfigError
from gateway_http.config import Settings


def test_defaults_are_loopback_port_8000_and_8_mib() -> None:
    settings = Settings.load([])
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.max_body_bytes == 8 * 1024 * 1024


def test_command_line_over_environment_over_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('port = 1\nhost = "127.0.0.2"\nupstream = "file:1"\n')
    monkeypatch.setenv("CHATRPC_GATEWAY_PORT", "2")
    monkeypatch.setenv("CHATRPC_GATEWAY_HOST", "127.0.0.3")
    settings = Settings.load(["--config", str(file), "--port", "3"])
    assert (settings.port, settings.host, settings.upstream) == (3, "127.0.0.3", "file:1")


@pytest.mark.parametrize("other", ["upstream", "upstream_ca"])
def test_models_come_from_one_place(monkeypatch: pytest.MonkeyPatch, other: str) -> None:
    assert Settings.load(["--registry", "r.toml"]).registry == Path("r.toml")
    monkeypatch.setenv(f"CHATRPC_GATEWAY_{other.upper()}", "x")
    with pytest.raises(ConfigError, match=f"registry and {other} cannot be given together"):
        Settings.load(["--registry", "r.toml"])


def test_admin_address_without_a_port_is_rejected() -> None:
    assert Settings.load(["--admin-host", "::1", "--admin-port", "1"]).admin_host == "::1"
    with pytest.raises(ConfigError, match="admin_host needs admin_port"):
        Settings.load(["--admin-host", "::1"])


def test_file_named_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text("drain_timeout_s = 3\n")
    monkeypatch.setenv("CHATRPC_GATEWAY_CONFIG", str(file))
    assert Settings.load([]).drain_timeout_s == 3


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("port = 99999", "port"),
        ("prot = 1", "prot"),
        ("port =", "Invalid value"),
        (None, "gateway.toml"),
    ],
)
def test_bad_file_is_one_line(tmp_path: Path, content: str | None, named: str) -> None:
    file = tmp_path / "gateway.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=named) as caught:
        Settings.load(["--config", str(file)])
    assert "\n" not in str(caught.value)


def test_bad_option_is_named() -> None:
    with pytest.raises(ConfigError, match="request_timeout_s"):
        Settings.load(["--request-timeout-s", "-1"])


def test_help_describes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Settings.load(["--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "--sse-ping-interval-s" in page
    assert "Port to listen on." in page
