"""Calls to services under TLS."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from typer.testing import CliRunner, Result

from chatrpc_cli.__main__ import app
from tests.chatrpc_cli.fake_service import FakeService
from tests.support.tls_files import issue, lock

COMMANDS = (["models"], ["health"], ["chat", "hello"])


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    return tmp_path / "ca.crt"


@pytest.fixture
def issuer(ca: Path) -> trustme.CA:
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(ca)
    return issuer


@pytest.fixture(params=[False, True], ids=["tls", "mutual"])
def is_mutual(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def target(issuer: trustme.CA, ca: Path, is_mutual: bool) -> Iterator[str]:
    files = issue(issuer, ca.parent)
    pair = files.key.read_bytes(), files.certificate.read_bytes()
    roots = issuer.cert_pem.bytes() if is_mutual else None
    service = FakeService(grpc.ssl_server_credentials([pair], roots, is_mutual))
    yield service.target
    service.stop()


@pytest.fixture
def own(issuer: trustme.CA, tmp_path: Path) -> tuple[str, str]:
    """Return the files of a client's certificate and key."""
    certificate = issuer.issue_cert("client")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "client.crt")
    certificate.private_key_pem.write_to_path(tmp_path / "client.key")
    return str(tmp_path / "client.crt"), str(tmp_path / "client.key")


@pytest.mark.parametrize("command", COMMANDS)
def test_command_connects_over_tls_with_matching_certificates(
    target: str,
    ca: Path,
    own: tuple[str, str],
    command: list[str],
    is_mutual: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*options: str) -> int:
        return CliRunner().invoke(app, [*command, "--target", target, *options]).exit_code

    certificate, key = own
    shown = ("--certificate", certificate, "--key", key)
    assert run("--ca", str(ca), *shown) == 0
    assert run("--ca", str(ca)) == int(is_mutual)
    assert run("--ca", str(ca.with_name("other.crt")), *shown) == 1
    assert run() == 1
    monkeypatch.setenv("CHATRPC_CA", str(ca))
    monkeypatch.setenv("CHATRPC_CERTIFICATE", certificate)
    monkeypatch.setenv("CHATRPC_CERTIFICATE_KEY", key)
    assert run() == 0


@pytest.fixture
def run_models() -> Callable[..., Result]:
    return lambda *options: CliRunner().invoke(app, ["models", *options])


def test_missing_file_is_reported(run_models: Callable[..., Result]) -> None:
    for option in ("--ca", "--certificate", "--key"):
        result = run_models(option, "/none.crt")
        assert result.exit_code == 2
        assert option in result.output


def test_incomplete_tls_options_are_reported(
    run_models: Callable[..., Result], ca: Path, own: tuple[str, str]
) -> None:
    certificate, key = own
    for options in (
        ("--ca", str(ca), "--certificate", certificate),
        ("--ca", str(ca), "--key", key),
        ("--certificate", certificate, "--key", key),
    ):
        result = run_models(*options)
        assert result.exit_code == 2
        assert "--certificate" in result.output


def test_mismatched_files_are_reported(
    run_models: Callable[..., Result], ca: Path, own: tuple[str, str], issuer: trustme.CA
) -> None:
    certificate, key = own
    issuer.issue_cert("other").private_key_pem.write_to_path(key)
    result = run_models("--ca", str(ca), "--certificate", certificate, "--key", key)
    assert result.exit_code == 2
    lock(Path(key))
    result = run_models("--ca", str(ca), "--certificate", certificate, "--key", key)
    assert result.exit_code == 2
    result = run_models("--ca", key)
    assert result.exit_code == 2
    assert "--ca" in result.output
