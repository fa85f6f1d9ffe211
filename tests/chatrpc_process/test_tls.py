"""Certificates in files: their dates and their replacement."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from structlog.testing import capture_logs

from chatrpc_process.errors import ConfigError
from chatrpc_process.tls import TlsFiles, certificate_validity, watch_tls
from tests.support.tls_files import issue, write

NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)
EXPIRED = {"not_before": NOW - 2 * DAY, "not_after": NOW - DAY}
FUTURE = {"not_before": NOW + DAY, "not_after": NOW + 2 * DAY}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def test_dates_of_a_certificate_are_read(ca: trustme.CA, tmp_path: Path) -> None:
    files = issue(ca, tmp_path, not_before=NOW - DAY, not_after=NOW + DAY)
    [validity] = files.read().validities
    assert validity.path == files.certificate
    assert validity.not_before_s == (NOW - DAY).timestamp()
    assert validity.not_after_s == (NOW + DAY).timestamp()
    assert validity.problem() is None


def test_client_ca_is_valid_as_long_as_one_of_its_certificates(
    ca: trustme.CA, tmp_path: Path
) -> None:
    files = issue(ca, tmp_path)
    bundle = tmp_path / "clients.crt"
    write(bundle, ca.cert_pem.bytes() + trustme.CA().cert_pem.bytes())
    _, validity = TlsFiles(files.certificate, files.key, bundle).read().validities
    assert validity.path == bundle
    assert validity.problem() is None


def test_file_without_a_certificate_is_named(tmp_path: Path) -> None:
    write(tmp_path / "x.crt", b"-----BEGIN nothing-----\n")
    with pytest.raises(ConfigError, match=r"x\.crt"):
        certificate_validity(tmp_path / "x.crt")


@pytest.mark.parametrize(
    ("dates", "said"), [(EXPIRED, "expired on"), (FUTURE, "is not valid before")]
)
def test_invalid_certificate_does_not_replace_a_valid_one(
    ca: trustme.CA, tmp_path: Path, dates: dict[str, datetime], said: str
) -> None:
    files = issue(ca, tmp_path)
    watched = watch_tls(files)
    valid = watched.value
    issue(ca, tmp_path, **dates)
    with capture_logs() as logs:
        assert not watched.refresh()
        assert not watched.refresh()
    assert watched.value is valid
    assert not watched.is_current
    assert [line["event"] for line in logs] == ["file_reload_failed"]
    assert said in logs[0]["reason"]
    issue(ca, tmp_path)
    assert watched.refresh()
    assert watched.is_current


@pytest.mark.parametrize(
    ("dates", "said"), [(EXPIRED, "expired on"), (FUTURE, "is not valid before")]
)
def test_invalid_certificate_is_used_where_there_is_no_other(
    ca: trustme.CA, tmp_path: Path, dates: dict[str, datetime], said: str
) -> None:
    files = issue(ca, tmp_path, **dates)
    with capture_logs() as logs:
        watched = watch_tls(files)
    assert [line["event"] for line in logs] == ["certificate_not_valid"]
    assert logs[0]["log_level"] == "error"
    assert said in logs[0]["reason"]
    issue(ca, tmp_path, **EXPIRED)
    assert watched.refresh()  # the new certificate is not worse than the old one
    issue(ca, tmp_path)
    assert watched.refresh()
    issue(ca, tmp_path, **dates)
    assert not watched.refresh()


def test_certificate_that_becomes_valid_is_taken_then(
    ca: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = issue(ca, tmp_path)
    watched = watch_tls(files)
    issue(ca, tmp_path, not_before=NOW + DAY, not_after=NOW + 3 * DAY)
    assert not watched.refresh()
    monkeypatch.setattr("time.time", (NOW + 2 * DAY).timestamp)
    assert watched.refresh()


def test_key_is_not_shown_by_its_representation(ca: trustme.CA, tmp_path: Path) -> None:
    assert "PRIVATE KEY" not in repr(issue(ca, tmp_path).read())
