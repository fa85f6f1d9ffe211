from pathlib import Path

import pytest
import torch

from service.engine.memory import available_memory

CPU = torch.device("cpu")
GIB = 2**30


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


def cgroup(path: Path, limit: str, used: int, inactive_file: int) -> Path:
    path = path / "cgroup"
    path.mkdir()
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\nfile 7\ninactive_file {inactive_file}\n")
    return path


def test_the_host_alone(tmp_path: Path, meminfo: Path) -> None:
    assert available_memory(CPU, tmp_path / "none", meminfo) == 8 * GIB


def test_a_group_without_a_limit(tmp_path: Path, meminfo: Path) -> None:
    group = cgroup(tmp_path, "max", used=5 * GIB, inactive_file=0)
    assert available_memory(CPU, group, meminfo) == 8 * GIB


def test_a_group_with_less_than_the_host(tmp_path: Path, meminfo: Path) -> None:
    group = cgroup(tmp_path, str(4 * GIB), used=3 * GIB, inactive_file=0)
    assert available_memory(CPU, group, meminfo) == 1 * GIB


def test_a_group_with_more_than_the_host(tmp_path: Path, meminfo: Path) -> None:
    group = cgroup(tmp_path, str(64 * GIB), used=GIB, inactive_file=0)
    assert available_memory(CPU, group, meminfo) == 8 * GIB


def test_the_pages_of_files_just_read_can_be_had_back(tmp_path: Path, meminfo: Path) -> None:
    """A checkpoint of 3 GiB has been read: the group seems full and is not."""
    group = cgroup(tmp_path, str(4 * GIB), used=4 * GIB, inactive_file=3 * GIB)
    assert available_memory(CPU, group, meminfo) == 3 * GIB


def test_a_group_above_its_limit_leaves_nothing(tmp_path: Path, meminfo: Path) -> None:
    group = cgroup(tmp_path, str(GIB), used=2 * GIB, inactive_file=0)
    assert available_memory(CPU, group, meminfo) == 0


def test_a_host_that_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "meminfo"
    file.write_text("MemTotal: 5 kB\n")
    with pytest.raises(OSError, match="MemAvailable"):
        available_memory(CPU, tmp_path / "none", file)


def test_this_machine_has_memory() -> None:
    assert available_memory(CPU) > 0
