import ctypes
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from service.engine.native import build, levels
from service.engine.native import compiler as compiler_module
from service.engine.native.build import compile_kernels, load_library
from service.engine.native.compiler import Unavailable, kernels_level
from tests.support.native_kernels import CPU_LEVELS, HAS_COMPILER

pytestmark = pytest.mark.skipif(
    not (CPU_LEVELS and HAS_COMPILER), reason="needs a CPU that has kernels, and GCC"
)


class Compiler:
    """A script instead of the compiler. It records its calls and copies a compiled library."""

    def __init__(self, directory: Path, product: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._calls, self._path = directory / "calls", directory / "compiler"
        self.behave(f'for out; do :; done; cp "{product}" "$out"')  # `-o FILE` is last
        monkeypatch.setenv("CXX", f"sh {self._path}")

    def behave(self, body: str) -> None:
        self._calls.write_text("")
        self._path.write_text(
            '[ "$1" = --version ] && { echo 1.0; exit; }\n'
            f'case "$*" in *-shared*) echo linked >> "{self._calls}";; esac\n{body}\n'
        )

    @property
    def num_links(self) -> int:
        return len(self._calls.read_text().splitlines())


@pytest.fixture(scope="session")
def product(kernels_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library as the machine's compiler makes it, without the appended digest."""
    path = tmp_path_factory.mktemp("product") / "product.so"
    path.write_bytes(cached(kernels_dir).read_bytes()[:-32])
    return path


@pytest.fixture
def compiler(tmp_path: Path, product: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    return Compiler(tmp_path, product, monkeypatch)


def reason_for_none(cache_dir: Path) -> str:
    with capture_logs() as logs:
        assert load_library(cache_dir) is None
    (line,) = (entry for entry in logs if entry["event"] == "native_kernels_unavailable")
    return str(line["reason"])


def cached(cache_dir: Path) -> Path:
    (path,) = (cache_dir / "native").iterdir()
    return path


def test_library_uses_the_openmp_runtime_of_torch(product: Path) -> None:
    maps = Path("/proc/self/maps").read_text().split()
    runtimes = {name for name in maps if "gomp" in name or "libomp" in name or "libiomp" in name}
    assert len(runtimes) == 1, runtimes


def test_library_is_compiled_once(tmp_path: Path, compiler: Compiler) -> None:
    for _ in range(3):
        assert load_library(tmp_path / "cache") is not None
    assert compiler.num_links == 1


def test_another_compiler_builds_its_own(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_library(tmp_path / "cache") is not None
    monkeypatch.setattr(build, "COMMON_FLAGS", (*compiler_module.COMMON_FLAGS, "-g"))
    assert load_library(tmp_path / "cache") is not None
    assert compiler.num_links == 2
    assert len(list((tmp_path / "cache" / "native").iterdir())) == 2


@pytest.mark.parametrize("damage", ["emptied", "cut", "changed", "replaced"])
def test_damaged_library_in_the_cache_is_compiled_again(
    tmp_path: Path, compiler: Compiler, damage: str
) -> None:
    assert load_library(tmp_path / "cache") is not None
    path = cached(tmp_path / "cache")
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.unlink()  # a file that a process has mapped must not be overwritten
    path.write_bytes(
        {
            "emptied": b"",
            "cut": whole[:middle],
            "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "replaced": b"no library at all",
        }[damage]
    )
    assert load_library(tmp_path / "cache") is not None
    assert compiler.num_links == 2
    assert path.read_bytes() == whole


def test_several_at_once_leave_one_whole_library(tmp_path: Path, compiler: Compiler) -> None:
    with ThreadPoolExecutor(4) as pool:
        libraries = list(pool.map(load_library, [tmp_path / "cache"] * 4))
    assert None not in libraries
    path = cached(tmp_path / "cache")  # the only file in the directory
    links = compiler.num_links
    assert load_library(tmp_path / "cache") is not None
    assert compiler.num_links == links
    assert path.exists()


def test_without_a_cache_directory_it_is_built_in_a_temporary_one(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_way, temporary = tmp_path / "file", tmp_path / "temporary"
    in_the_way.write_text("")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with capture_logs() as logs:
        library = load_library(in_the_way)
    assert library is not None
    assert library.chatrpc_linear_self_test() == 0
    assert [entry["event"] for entry in logs] == ["native_kernels_not_cached"]
    assert not list(temporary.iterdir())


def test_without_a_compiler_there_are_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in reason_for_none(tmp_path)


def test_missing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    assert "nothing" in reason_for_none(tmp_path)


def test_unparsable_compiler_command_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ 'unfinished")
    assert "No closing quotation" in reason_for_none(tmp_path)


def test_failing_compiler_is_reported(tmp_path: Path, compiler: Compiler) -> None:
    compiler.behave("echo 'fatal error: no such header' >&2; exit 1")
    assert "status 1: fatal error: no such header" in reason_for_none(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "native").iterdir())


def test_hanging_compiler_times_out(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "_COMPILE_TIMEOUT_S", 0.2)
    compiler.behave("exec sleep 60")
    assert "timed out" in reason_for_none(tmp_path / "cache")


def test_invalid_library_is_reported(tmp_path: Path, compiler: Compiler) -> None:
    compiler.behave('for out; do :; done; head -c 5000 /dev/zero > "$out"')
    assert "invalid ELF header" in reason_for_none(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "native").iterdir())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int chatrpc_linear_self_test(void) { return 3; }", "self-test 3"),
        ("int something_else(void) { return 0; }", "chatrpc_linear_self_test"),
        (
            'const char name[] = "libomp.so"; int chatrpc_linear_self_test(void) { return 0; }',
            "second OpenMP runtime",
        ),
    ],
)
def test_library_that_fails_its_self_test_is_not_used(
    tmp_path: Path, compiler: Compiler, source: str, expected: str
) -> None:
    (tmp_path / "wrong.c").write_text(source)
    wrong = tmp_path / "wrong.so"
    subprocess.run(["gcc", "-shared", "-o", wrong, tmp_path / "wrong.c"], check=True)
    compiler.behave(f'for out; do :; done; cp "{wrong}" "$out"')
    assert expected in reason_for_none(tmp_path / "cache")
    assert not list((tmp_path / "cache" / "native").iterdir())


@pytest.mark.parametrize(
    "cpuinfo", ["processor : 0\nflags : fpu avx2\n\n", "Features : asimd\n", ""]
)
def test_cpu_without_a_level_gets_no_kernels(
    tmp_path: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, cpuinfo: str
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(levels, "_CPUINFO", tmp_path / "cpuinfo")
    assert "AVX2" in reason_for_none(tmp_path / "cache")
    assert compiler.num_links == 0


def test_level_none_loads_no_kernels(tmp_path: Path, compiler: Compiler) -> None:
    compile_kernels(tmp_path, "none")
    with capture_logs() as logs:
        assert load_library(tmp_path, "none") is None
    assert logs == []
    assert compiler.num_links == 0


def test_level_is_compiled_beside_that_of_the_cpu(tmp_path: Path, compiler: Compiler) -> None:
    compile_kernels(tmp_path, CPU_LEVELS[-1])
    for _ in range(2):
        assert load_library(tmp_path, CPU_LEVELS[-1]) is not None
        assert load_library(tmp_path, "auto") is not None
    assert compiler.num_links == 2


def test_level_that_the_cpu_lacks_is_an_error_that_names_the_instructions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : avx2 fma f16c bmi1 bmi2 movbe abm\n")
    monkeypatch.setattr(levels, "_CPUINFO", tmp_path / "cpuinfo")
    with pytest.raises(Unavailable, match="cannot run the level avxvnni: it lacks avx_vnni"):
        load_library(tmp_path, "avxvnni")


def test_library_contains_the_name_of_its_level(kernels_dir: Path) -> None:
    library = load_library(kernels_dir)
    assert library is not None
    assert kernels_level(library) == CPU_LEVELS[0]


def test_machine_without_cpuinfo_gets_no_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(levels, "_CPUINFO", tmp_path / "nothing")
    assert "nothing" in reason_for_none(tmp_path)


def test_library_is_loaded_as_cdll(tmp_path: Path, compiler: Compiler) -> None:
    assert isinstance(load_library(tmp_path / "cache"), ctypes.CDLL)


def test_compiled_kernels_are_not_compiled_again(tmp_path: Path, compiler: Compiler) -> None:
    compile_kernels(tmp_path)
    assert load_library(tmp_path) is not None
    assert compiler.num_links == 1


def test_compiling_beforehand_leaves_what_goes_wrong_to_the_load(
    tmp_path: Path, compiler: Compiler
) -> None:
    compiler.behave("exit 1")
    with capture_logs() as logs:
        compile_kernels(tmp_path)
    assert logs == []
    assert "failed with status 1" in reason_for_none(tmp_path)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_kernels_are_not_compiled_where_a_gpu_will_be_used(tmp_path: Path) -> None:
    compile_kernels(tmp_path, may_use_gpu=True)
    assert not list(tmp_path.rglob("*.so"))
