"""Addresses, authentication and certificates of a process that listens."""

from pathlib import Path

import pytest
from pydantic_settings import SettingsConfigDict

from chatrpc_process.errors import ConfigError
from chatrpc_process.settings.listener import ListenerSettings
from chatrpc_process.settings.loopback import is_loopback


class Settings(ListenerSettings):
    model_config = SettingsConfigDict(env_prefix="CHATRPC_TEST_")


KEYS = ("--api-keys", "keys.toml")
TLS = ("--tls-certificate", "tls.crt", "--tls-key", "tls.key")
CLIENT_CA = ("--tls-client-ca", "ca.crt")


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_loopback_address_needs_no_authentication(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local
    if is_local:
        assert Settings.load(["--host", host]).host == host
        return
    with pytest.raises(ConfigError) as caught:
        Settings.load(["--host", host])
    for way_out in ("--api-keys", "--tls-client-ca", "--insecure"):
        assert way_out in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asks", [KEYS, (*TLS, *CLIENT_CA), ("--insecure",)])
def test_remote_address_is_accepted_with_authentication_or_insecure(asks: tuple[str, ...]) -> None:
    assert Settings.load(["--host", "::", *asks]).host == "::"


def test_server_certificate_is_no_authentication_of_clients() -> None:
    with pytest.raises(ConfigError):
        Settings.load(["--host", "::", *TLS])


def test_insecure_can_be_set_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHATRPC_TEST_INSECURE", "true")
    assert Settings.load(["--host", "::"]).insecure


@pytest.mark.parametrize("half", [TLS[:2], TLS[2:], CLIENT_CA])
def test_incomplete_tls_options_are_rejected(half: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="tls_"):
        Settings.load([*half])


def test_tls_files_are_those_of_the_options() -> None:
    assert Settings.load([]).tls is None
    files = Settings.load([*TLS, *CLIENT_CA]).tls
    assert files is not None
    assert files.paths == (Path("tls.crt"), Path("tls.key"), Path("ca.crt"))
