"""Kernels for CPUs that this machine does not have: ARM's in the emulator QEMU, and AVX-VNNI's with
the same instruction in the encoding of AVX-512. They compute what those of this machine do."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.engine.native.compiler import COMMON_FLAGS, SOURCES, find_compiler
from service.engine.native.levels import LEVELS
from tests.support.native_kernels import CPU_LEVELS, HAS_COMPILER

DRIVER = Path(__file__).parent / "kernels_driver.cpp"
CROSS_COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
BY_NAME = {level.name: level for level in LEVELS}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CPU_LEVELS and HAS_COMPILER), reason="needs kernels, and GCC"),
]


def results(
    compiler: tuple[str, ...], flags: tuple[str, ...], directory: Path, *runner: str
) -> NDArray[np.float32]:
    """Compile the driver with the kernels, run it, and return what it computes."""
    program = directory / "driver"
    sources = [path for path in SOURCES.glob("*.cpp") if path.name != "attention.cpp"]
    subprocess.run(
        [*compiler, *COMMON_FLAGS, *flags, f"-I{SOURCES}", DRIVER, *sources, "-o", program],
        check=True,
        capture_output=True,
    )
    # The emulator runs several threads slowly.
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([*runner, program], check=True, capture_output=True, env=environment)
    return np.frombuffer(done.stdout, dtype=np.float32)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float32]:
    """Return the results of the least capable level of this machine, which its own tests check."""
    flags = BY_NAME[CPU_LEVELS[-1]].compiler_flags
    return results(find_compiler(), flags, tmp_path_factory.mktemp("here"))


def assert_close(actual: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert actual.shape == expected.shape
    # A last bit of a float may change the rounding of an activation to int8.
    assert np.linalg.norm(actual - expected) < 1e-4 * np.linalg.norm(expected)
    assert np.isfinite(actual).all()


@pytest.mark.skipif(
    CROSS_COMPILER is None or EMULATOR is None,
    reason="needs aarch64-linux-gnu-g++ and qemu-aarch64",
)
@pytest.mark.parametrize("level", ["dotprod", "i8mm"])
def test_kernels_for_arm_compute_the_same_in_an_emulator(
    level: str, expected: NDArray[np.float32], tmp_path: Path
) -> None:
    flags = ("-static", *BY_NAME[level].compiler_flags)
    actual = results((str(CROSS_COMPILER),), flags, tmp_path, str(EMULATOR), "-cpu", "max")
    assert_close(actual, expected)


@pytest.mark.skipif("vnni" not in CPU_LEVELS, reason="needs a CPU with AVX-512 VNNI")
def test_kernels_for_avx_vnni_compute_the_same_in_the_encoding_of_avx512(
    expected: NDArray[np.float32], tmp_path: Path
) -> None:
    flags = (*BY_NAME["avx2"].compiler_flags, "-mavx512vl", "-mavx512vnni")
    defined = ("-DCHATRPC_USE_AVX2", "-DCHATRPC_EVEX_VNNI")
    assert np.array_equal(results(find_compiler(), (*flags, *defined), tmp_path), expected)
