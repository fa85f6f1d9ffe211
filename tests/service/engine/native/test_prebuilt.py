import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from service.engine.native import prebuilt
from service.engine.native.build import load_library
from service.engine.native.compiler import SOURCES, Unavailable
from service.engine.native.prebuilt import _LEVELS, compile_all, open_prebuilt
from tests.support.native_kernels import HAS_COMPILER

CPUINFO = Path("/proc/cpuinfo")
FLAGS = next(
    (set(line.split()) for line in CPUINFO.read_text().splitlines() if line.startswith("flags")),
    set(),
)

pytestmark = pytest.mark.skipif(not HAS_COMPILER, reason="needs GCC")
on_vnni = pytest.mark.skipif("avx512_vnni" not in FLAGS, reason="needs a CPU with AVX-512 VNNI")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the libraries of all levels, as in an image."""
    directory = tmp_path_factory.mktemp("prebuilt")
    assert compile_all(directory) == [directory / level.file_name for level in _LEVELS]
    return directory


@pytest.fixture
def own(compiled: Path, tmp_path: Path) -> Path:
    """Return a copy that tests may damage."""
    return Path(shutil.copytree(compiled, tmp_path / "own"))


def chosen(flags: set[str], directory: Path) -> str | None:
    with capture_logs() as logs:
        library = open_prebuilt(flags, directory)
    names = [line["kernels"] for line in logs if line["event"] == "native_kernels_prebuilt"]
    assert len(names) == (library is not None)
    return names[0] if names else None


def can_run() -> list[str]:
    return [level.name for level in _LEVELS if level.cpu_flags <= FLAGS]


@pytest.mark.slow
def test_command_writes_one_library_for_each_level(compiled: Path) -> None:
    assert {path.name for path in compiled.iterdir()} == {level.file_name for level in _LEVELS}


@on_vnni
def test_each_computes_what_it_should(compiled: Path) -> None:
    for level in _LEVELS:
        if level.name in can_run():
            assert chosen(set(level.cpu_flags), compiled) == level.name  # its self-test passed


@on_vnni
def test_fastest_supported_library_is_opened(compiled: Path) -> None:
    assert chosen(FLAGS, compiled) == can_run()[0]


def test_cpu_without_vnni_gets_no_prebuilt_kernels(compiled: Path) -> None:
    assert chosen({"avx2", "fma"}, compiled) is None


@on_vnni
def test_damaged_prebuilt_library_is_skipped(own: Path) -> None:
    best = next(level for level in _LEVELS if level.name == can_run()[0])
    path = own / best.file_name
    whole = path.read_bytes()
    path.unlink()  # a file that a process has mapped must not be overwritten
    path.write_bytes(whole[:5000] + b"x" + whole[5001:])
    assert chosen(FLAGS, own) == next(iter(can_run()[1:]), None)


def test_library_of_other_sources_is_not_opened(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "sources"
    shutil.copytree(SOURCES, changed, ignore=shutil.ignore_patterns("prebuilt", "__pycache__"))
    with (changed / "linear.h").open("a") as file:
        file.write("// changed\n")
    monkeypatch.setattr("service.engine.native.compiler.SOURCES", changed)
    assert chosen(FLAGS, own) is None


@on_vnni
def test_prebuilt_kernels_are_loaded_without_a_compiler(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(
        "service.engine.native.build.open_prebuilt", lambda f: open_prebuilt(f, own)
    )
    with capture_logs() as logs:
        assert load_library(tmp_path / "cache") is not None
    assert [line["event"] for line in logs] == ["native_kernels_prebuilt"]
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


def test_on_another_machine_there_is_nothing_to_compile(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr(prebuilt, "compile_all", lambda: pytest.fail("it compiles"))
    assert prebuilt.main() == 0
    assert "aarch64" in capsys.readouterr().out
