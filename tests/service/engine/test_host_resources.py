import os
from pathlib import Path

import pytest

from service.engine.host_resources import available_cpus, available_memory

GIB = 2**30


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


def cpu_group(path: Path, limit: str) -> Path:
    (path / "cpu.max").write_text(f"{limit}\n")
    return path


def cpu_group_v1(path: Path, quota: int, period: int = 100_000) -> Path:
    (path / "cpu").mkdir()
    (path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (path / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    return path


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    file = tmp_path / "meminfo"
    lines = [
        "MemTotal:       16777216 kB",
        "MemAvailable:    8388608 kB",
        "HugePages_Total:       0",
    ]
    file.write_text("\n".join(lines) + "\n")
    return file


def memory_group(path: Path, limit: str, used: int, inactive_file: int) -> Path:
    path = path / "cgroup"
    path.mkdir()
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\nfile 7\ninactive_file {inactive_file}\n")
    return path


@pytest.mark.usefixtures("eight_cpus")
def test_cpus_without_a_control_group_are_the_affinity(tmp_path: Path) -> None:
    assert available_cpus(tmp_path) == 8


@pytest.mark.usefixtures("eight_cpus")
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
def test_cpus_are_limited_by_the_control_group(tmp_path: Path, limit: str, cpus: int) -> None:
    assert available_cpus(cpu_group(tmp_path, limit)) == cpus


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("quota", "cpus"), [(-1, 8), (200_000, 2), (150_000, 2), (1_000, 1)])
def test_cpus_are_limited_by_a_control_group_of_version_1(
    tmp_path: Path, quota: int, cpus: int
) -> None:
    assert available_cpus(cpu_group_v1(tmp_path, quota)) == cpus


def test_cpus_of_a_system_without_affinity_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert available_cpus(tmp_path) == 3


def test_cpus_of_this_machine_are_positive() -> None:
    assert available_cpus() >= 1


def test_memory_without_a_control_group_is_the_host_s(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(tmp_path / "none", meminfo) == 8 * GIB


def test_memory_of_a_group_without_limit_is_the_host_s(tmp_path: Path, meminfo: Path) -> None:
    group = memory_group(tmp_path, "max", used=5 * GIB, inactive_file=0)
    assert available_memory(group, meminfo) == 8 * GIB


def test_memory_is_limited_by_a_group_with_less_than_the_host(
    tmp_path: Path, meminfo: Path
) -> None:
    group = memory_group(tmp_path, str(4 * GIB), used=3 * GIB, inactive_file=0)
    assert available_memory(group, meminfo) == 1 * GIB


def test_memory_is_limited_by_a_host_with_less_than_the_group(
    tmp_path: Path, meminfo: Path
) -> None:
    group = memory_group(tmp_path, str(64 * GIB), used=GIB, inactive_file=0)
    assert available_memory(group, meminfo) == 8 * GIB


def test_inactive_file_pages_count_as_available(tmp_path: Path, meminfo: Path) -> None:
    """A checkpoint of 3 GiB has been read, so the group's usage is at its limit."""
    group = memory_group(tmp_path, str(4 * GIB), used=4 * GIB, inactive_file=3 * GIB)
    assert available_memory(group, meminfo) == 3 * GIB


def test_memory_of_a_group_above_its_limit_is_zero(tmp_path: Path, meminfo: Path) -> None:
    group = memory_group(tmp_path, str(GIB), used=2 * GIB, inactive_file=0)
    assert available_memory(group, meminfo) == 0


def test_meminfo_without_mem_available_raises(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 5 kB\n")
    with pytest.raises(OSError, match="MemAvailable"):
        available_memory(tmp_path / "none", file)


def test_memory_of_this_machine_is_positive() -> None:
    assert available_memory() > 0
