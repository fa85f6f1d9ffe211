"""Checks of `--check` besides those of a listener's files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway_http.check import check
from gateway_http.config import Settings
from tests.support.tls_files import issue, write

DAY = timedelta(days=1)
MODEL = '[[model]]\nname = "m"\ntarget = "dns:///m:1"\nca = "ca.crt"\n'
OWN = 'certificate = "tls.crt"\nkey = "tls.key"\n'


def problems(**options: Any) -> list[str]:
    return check(Settings(**options)).problems


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory with a CA and an expired certificate of the gateway."""
    ca, now = trustme.CA(), datetime.now(UTC)
    write(tmp_path / "ca.crt", ca.cert_pem.bytes())
    issue(ca, tmp_path, not_before=now - 2 * DAY, not_after=now - DAY)
    return tmp_path


@pytest.mark.parametrize(("model", "num_problems"), [(MODEL, 0), (MODEL + OWN, 1)])
def test_certificates_of_the_registry_are_checked(
    directory: Path, model: str, num_problems: int
) -> None:
    registry = directory / "registry.toml"
    registry.write_text(model)
    found = problems(registry=registry)
    assert len(found) == num_problems
    assert all("tls.crt: the certificate expired on" in problem for problem in found)


def test_certificate_for_the_only_service_is_checked(directory: Path) -> None:
    [problem] = problems(
        upstream_ca=directory / "ca.crt",
        upstream_certificate=directory / "tls.crt",
        upstream_key=directory / "tls.key",
    )
    assert "expired on" in problem
    assert problems(upstream_ca=directory / "ca.crt") == []


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    none = tmp_path / "none"
    found = problems(registry=none, upstream_api_key_file=none)
    assert len(found) == 2
    assert all(str(none) in problem for problem in found)


def test_names_of_hosted_models_are_checked() -> None:
    assert problems(models=["a", "b=a"]) == []
    [problem] = problems(models=["a", "a"])
    assert problem.startswith("models: two models are called 'a'.")
