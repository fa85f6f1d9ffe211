import os
from pathlib import Path

import pytest

from service.engine.cpus import available_cpus


@pytest.fixture(autouse=True)
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def v2(path: Path, limit: str) -> Path:
    (path / "cpu.max").write_text(f"{limit}\n")
    return path


def v1(path: Path, quota: int, period: int = 100_000) -> Path:
    (path / "cpu").mkdir()
    (path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (path / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    return path


def test_the_affinity_alone(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 8


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("250000 100000", 3),
        ("10000 100000", 1),
        ("50000 25000", 2),
        ("6400000 100000", 8),
    ],
)
def test_a_quota(tmp_path: Path, limit: str, cpus: int) -> None:
    assert available_cpus(v2(tmp_path, limit)) == cpus


@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (200_000, 2), (150_000, 2), (1_000, 1)])
def test_a_quota_of_version_1(tmp_path: Path, quota: int, cpus: int) -> None:
    assert available_cpus(v1(tmp_path, quota)) == cpus


def test_a_system_without_affinities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cpus(tmp_path) == 3


def test_this_machine_has_cpus() -> None:
    assert available_cpus() >= 1
