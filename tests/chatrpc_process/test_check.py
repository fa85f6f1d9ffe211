"""The part of `--check` that both processes have."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from chatrpc_process.check import check_listener
from chatrpc_process.settings.listener import ListenerSettings
from tests.support.api_keys import key, write
from tests.support.tls_files import issue

DAY = timedelta(days=1)


def check(**options: Any) -> tuple[list[str], list[str]]:
    findings = check_listener(ListenerSettings(**options))
    return findings.problems, findings.warnings


def test_settings_without_files_have_no_problems(capsys: pytest.CaptureFixture[str]) -> None:
    findings = check_listener(ListenerSettings())
    assert findings.report() == 0
    assert capsys.readouterr().err == ""


def test_all_problems_of_all_files_are_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write(tmp_path / "keys.toml", key("a", "rpm = 1", "weight = 0") + key("b"))
    now = datetime.now(UTC)
    tls = issue(trustme.CA(), tmp_path, not_before=now - 2 * DAY, not_after=now - DAY)
    findings = check_listener(
        ListenerSettings(api_keys=keys, tls_certificate=tls.certificate, tls_key=tls.key)
    )
    assert findings.report() == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True, True, True, False]
    assert any("rpm" in line for line in lines)
    assert any("weight" in line for line in lines)
    assert any("expired on" in line for line in lines)
    assert lines[-1].startswith("warning: ")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    none = tmp_path / "none"
    problems, _ = check(api_keys=none, tls_certificate=none, tls_key=none)
    assert len(problems) == 2
    assert all(str(none) in problem for problem in problems)


def test_valid_files_have_no_problems(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key("a", "requests_per_minute = 1"))
    tls = issue(trustme.CA(), tmp_path)
    found = check(api_keys=keys, tls_certificate=tls.certificate, tls_key=tls.key)
    assert found == ([], [])
