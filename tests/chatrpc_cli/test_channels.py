"""Services under TLS, from a terminal."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import trustme
from typer.testing import CliRunner

from chatrpc_cli.__main__ import app
from tests.chatrpc_cli.fake_service import FakeService
from tests.tls_files import issue

COMMANDS = (["models"], ["health"], ["chat", "hello"])


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.crt")
    return tmp_path / "ca.crt"


@pytest.fixture
def target(ca: Path) -> Iterator[str]:
    issuer = trustme.CA()
    issuer.cert_pem.write_to_path(ca)
    files = issue(issuer, ca.parent)
    pair = files.key.read_bytes(), files.certificate.read_bytes()
    service = FakeService(grpc.ssl_server_credentials([pair]))
    yield service.target
    service.stop()


@pytest.mark.parametrize("command", COMMANDS)
def test_who_has_signed_the_certificate_is_told_or_it_is_not_trusted(
    target: str, ca: Path, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: str) -> int:
        return CliRunner().invoke(app, [*command, "--target", target, *options]).exit_code

    assert run("--ca", str(ca)) == 0
    assert run("--ca", str(ca.with_name("other.crt"))) == 1
    assert run() == 1
    monkeypatch.setenv("CHATRPC_CA", str(ca))
    assert run() == 0


def test_a_file_that_is_none_is_named() -> None:
    result = CliRunner().invoke(app, ["models", "--ca", "/none.crt"])
    assert result.exit_code == 2
    assert "--ca" in result.output
