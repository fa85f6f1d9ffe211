import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.engine.native import prebuilt
from service.engine.native.build import load_library
from service.engine.native.compiler import SOURCES, Unavailable, kernels_level
from service.engine.native.levels import LEVELS, Level
from service.engine.native.prebuilt import compile_all, file_name, open_prebuilt
from tests.support.native_kernels import CPU_LEVELS, HAS_COMPILER

CROSS_COMPILER = shutil.which("aarch64-linux-gnu-g++")
HERE = [level for level in LEVELS if level.name in CPU_LEVELS]

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs GCC")
on_supported_cpu = pytest.mark.skipif(not HERE, reason="needs a CPU that has kernels")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the most and the least capable library for this CPU."""
    directory = tmp_path_factory.mktemp("prebuilt")
    names = {level.name for level in (*(HERE or LEVELS)[:1], *HERE[-1:])}
    assert {path.name.partition("-")[0] for path in compile_all(directory, names)} == names
    return directory


@pytest.fixture
def own(compiled: Path, tmp_path: Path) -> Path:
    """Return a copy that tests may damage."""
    return Path(shutil.copytree(compiled, tmp_path / "own"))


def chosen(levels: list[Level], directory: Path) -> str | None:
    """Return the name of the level whose library is opened."""
    opened = open_prebuilt(levels, directory)
    if opened is None:
        return None
    library, level = opened
    assert kernels_level(library) == level.name
    return level.name


@pytest.mark.slow
def test_command_writes_one_library_for_each_level_of_the_architecture(tmp_path: Path) -> None:
    machine = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout
    expected = [level for level in LEVELS if level.machine == machine.strip()]
    assert compile_all(tmp_path) == [tmp_path / file_name(level) for level in expected]
    assert {path.name for path in tmp_path.iterdir()} == {file_name(level) for level in expected}
    for level in expected:
        if level.name in CPU_LEVELS:
            assert chosen([level], tmp_path) == level.name  # its self-test passed


@pytest.mark.slow
@pytest.mark.skipif(CROSS_COMPILER is None, reason="needs aarch64-linux-gnu-g++")
def test_cross_compiler_compiles_the_levels_of_its_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(CROSS_COMPILER))
    names = [path.name.partition("-")[0] for path in compile_all(tmp_path)]
    assert names == ["i8mm", "dotprod"]


@on_supported_cpu
def test_most_capable_supported_library_is_opened(compiled: Path) -> None:
    assert chosen(HERE, compiled) == CPU_LEVELS[0]


@on_supported_cpu
def test_level_can_be_chosen(compiled: Path) -> None:
    assert chosen(HERE[-1:], compiled) == CPU_LEVELS[-1]


def test_cpu_without_a_level_gets_no_prebuilt_kernels(compiled: Path) -> None:
    assert chosen([], compiled) is None


@on_supported_cpu
def test_damaged_prebuilt_library_is_skipped(own: Path) -> None:
    path = own / file_name(HERE[0])
    whole = path.read_bytes()
    path.unlink()  # a file that a process has mapped must not be overwritten
    path.write_bytes(whole[:5000] + b"x" + whole[5001:])
    assert chosen(HERE, own) == next(iter(CPU_LEVELS[1:][-1:]), None)


def test_library_of_other_sources_is_not_opened(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "sources"
    shutil.copytree(SOURCES, changed, ignore=shutil.ignore_patterns("prebuilt", "__pycache__"))
    with (changed / "linear.h").open("a") as file:
        file.write("// changed\n")
    monkeypatch.setattr("service.engine.native.compiler.SOURCES", changed)
    assert chosen(HERE, own) is None


@on_supported_cpu
@pytest.mark.parametrize("cpu_level", ["auto", *CPU_LEVELS[-1:]])
def test_prebuilt_kernels_are_loaded_without_a_compiler(
    cpu_level: str, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        "service.engine.native.build.open_prebuilt", lambda levels: open_prebuilt(levels, own)
    )
    with capture_logs() as logs:
        assert load_library(tmp_path / "cache", cpu_level) is not None
    expected = CPU_LEVELS[0] if cpu_level == "auto" else cpu_level
    (line,) = logs
    assert (line["event"], line["kernels"]) == ("native_kernels_prebuilt", expected)
    assert not (tmp_path / "cache").exists()


def test_without_a_compiler_there_is_nothing_to_compile_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no C"):
        compile_all(tmp_path / "prebuilt")
    assert prebuilt.main() == 1


def test_command_without_compiler_fails_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.engine.native.prebuilt"],
        env={"CXX": str(tmp_path / "nothing"), "PATH": "", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "nothing" in done.stderr
    assert "Traceback" not in done.stderr


def test_for_another_architecture_there_is_nothing_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compiler").write_text("echo riscv64-linux-gnu\n")
    monkeypatch.setenv("CXX", f"sh {tmp_path / 'compiler'}")
    assert prebuilt.main() == 0
    assert "no kernels" in capsys.readouterr().out
