"""The systemd units, checked by systemd if it is installed, and against our settings."""

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway_http.config import Settings as GatewaySettings
from service.config import ServiceSettings
from tests.deploy.chart import ROOT
from tests.support.process_options import unknown_variables

DIRECTORY = ROOT / "deploy" / "systemd"
NAMES = ("service", "gateway")

with_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"
)


class Unit(configparser.ConfigParser):
    """A unit file. A key that occurs several times has all its values, one on each line."""

    def __init__(self, name: str) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=["="])
        lines: dict[str, dict[str, list[str]]] = {}
        section = ""
        for line in (DIRECTORY / f"chatrpc-{name}.service").read_text().splitlines():
            if match := re.fullmatch(r"\[(\w+)\]", line):
                section = match[1]
            elif line and not line.startswith("#"):
                key, _, value = line.partition("=")
                lines.setdefault(section, {}).setdefault(key, []).append(value)
        self.read_dict({s: {k: "\n".join(v) for k, v in keys.items()} for s, keys in lines.items()})

    @property
    def environment(self) -> dict[str, str]:
        words = self["Service"]["Environment"].split()
        return dict(word.split("=", 1) for word in words)


@pytest.fixture(params=NAMES)
def unit(request: pytest.FixtureRequest) -> Unit:
    return Unit(request.param)


@pytest.fixture
def installed(tmp_path: Path) -> list[Path]:
    """Copy the units, with a program that exists."""
    paths = []
    for name in NAMES:
        path = tmp_path / f"chatrpc-{name}.service"
        text = (DIRECTORY / path.name).read_text()
        path.write_text(text.replace("/opt/chatrpc/bin/python", "/bin/true"))
        paths.append(path)
    return paths


def analyze(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@with_systemd
def test_units_are_valid(installed: list[Path]) -> None:
    assert analyze("verify", "--man=no", *installed) == ""


@with_systemd
def test_units_are_hardened(installed: list[Path]) -> None:
    for path in installed:
        # The exposure level is between 0 and 100.
        analyze("security", "--offline=true", "--threshold=20", "--no-pager", path)


def test_unit_restarts_by_the_exit_codes_of_the_process(unit: Unit) -> None:
    service = unit["Service"]
    assert service["Restart"] == "on-failure"  # exit code 1 and signals, not 0
    assert service["RestartPreventExitStatus"] == "2"  # the exit code of wrong settings
    assert int(unit["Unit"]["StartLimitIntervalSec"]) > 0


def test_unit_stop_timeout_exceeds_the_drain(unit: Unit) -> None:
    defaults = (
        ServiceSettings.model_fields["drain_timeout_s"].default,
        (GatewaySettings.model_fields["drain_timeout_s"].default),
    )
    assert int(unit["Service"]["TimeoutStopSec"]) >= max(defaults) + 10
    assert unit["Service"]["KillMode"] == "mixed"


def test_chatrpc_variables_are_settings(unit: Unit) -> None:
    assert any(name.startswith("CHATRPC_") for name in unit.environment)
    assert not unknown_variables(unit.environment)


def test_unit_runs_as_its_own_user() -> None:
    for name, module in (("service", "service"), ("gateway", "gateway_http")):
        service = Unit(name)["Service"]
        assert service["ExecStart"] == f"/opt/chatrpc/bin/python -m {module}"
        user = service["User"]
        assert re.search(rf"^u {user} ", (DIRECTORY / "chatrpc.sysusers").read_text(), re.MULTILINE)


def test_units_have_the_same_hardening() -> None:
    def hardening(name: str) -> dict[str, str]:
        prefixes = ("protect", "private", "restrictn", "restricta", "system", "capab", "nonew")
        return {k: v for k, v in Unit(name)["Service"].items() if k.startswith(prefixes)}

    assert hardening("service") == hardening("gateway")
    assert len(hardening("service")) > 10
