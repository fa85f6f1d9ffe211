from pathlib import Path
from typing import get_args

import pytest

from service.domain.engine_settings import CpuLevel
from service.engine.native import levels
from service.engine.native.levels import LEVELS, missing_flags, read_cpu


def names(cpuinfo: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (directory / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(levels, "_CPUINFO", directory / "cpuinfo")
    return [level.name for level in read_cpu().levels()]


def test_option_has_all_levels() -> None:
    assert set(get_args(CpuLevel)) == {"auto", "none", *(level.name for level in LEVELS)}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags : fpu sse4_2 ssse3", []),
        ("flags : avx2 fma f16c bmi1 bmi2 movbe abm", ["avx2"]),
        ("flags : avx2 fma f16c bmi1 bmi2 movbe abm avx_vnni", ["avxvnni", "avx2"]),
        # A CPU with AVX-512 before VNNI.
        ("flags : avx2 fma f16c bmi1 bmi2 movbe abm avx512f avx512bw avx512dq avx512vl", ["avx2"]),
        ("Features : fp asimd evtstrm", []),
        ("Features : fp asimd atomics crc32 asimdrdm asimddp", ["dotprod"]),
        ("Features : fp asimd atomics crc32 asimdrdm asimddp i8mm", ["i8mm", "dotprod"]),
        ("processor : 0", []),
    ],
)
def test_levels_follow_the_flags_of_the_cpu(
    line: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert names(f"processor : 0\n{line}\n\nprocessor : 1\n", tmp_path, monkeypatch) == expected


def test_each_level_has_what_the_next_one_of_its_machine_needs_or_another_vector_length() -> None:
    by_name = {level.name: level for level in LEVELS}
    for better, other in (("amx", "bf16"), ("bf16", "vnni"), ("vnni", "avx2"), ("i8mm", "dotprod")):
        assert by_name[better].cpu_flags > by_name[other].cpu_flags
        assert missing_flags(by_name[other], by_name[better].cpu_flags) == ""


def test_cpus_of_different_models_differ_in_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = set()
    for cpuinfo in (
        "vendor_id : A\nmodel : 1\nflags : avx2",
        "vendor_id : A\nmodel : 2\nflags : avx2",
        "CPU implementer : 0x41\nCPU part : 0xd0c\nFeatures : asimd",
        "CPU implementer : 0x41\nCPU part : 0xd40\nFeatures : asimd",
    ):
        names(cpuinfo, tmp_path, monkeypatch)
        identities.add(read_cpu().identity)
    assert len(identities) == 4
