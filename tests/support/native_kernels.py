"""Skip or fail the tests that need the native kernels, if there are none.

With CHATRPC_REQUIRE_KERNELS=1, as in CI, tests of kernels that do not compile fail. On a CPU that
cannot run the kernels, tests that run them are skipped, and `test_prebuilt.py` still compiles them.
"""

import ctypes
import os
import shutil

import pytest

from service.engine.native.levels import read_cpu


def _levels() -> tuple[str, ...]:
    try:
        return tuple(level.name for level in read_cpu().levels())
    except OSError:
        return ()


ARE_REQUIRED = os.environ.get("CHATRPC_REQUIRE_KERNELS", "0") not in {"", "0"}
# The levels that this CPU can run, the most capable first.
CPU_LEVELS = _levels()
HAS_COMPILER = (
    ARE_REQUIRED or shutil.which("g++") is not None
)  # if it is required, its tests fail without it
NEEDS_KERNELS = pytest.mark.skipif(
    not (CPU_LEVELS and HAS_COMPILER), reason="needs a CPU that has kernels, and GCC"
)
# The values of `cpu_level` to test with. The quick tests run what this CPU would choose, and the
# least capable level; levels in between have the code of these two but for the products.
LEVELS_TO_TEST = (
    "auto",
    *(pytest.param(name, marks=pytest.mark.slow) for name in CPU_LEVELS[1:-1]),
    *CPU_LEVELS[1:][-1:],
)


def are_kernels_required(
    *, are_required: bool = ARE_REQUIRED, can_run: bool = bool(CPU_LEVELS)
) -> bool:
    """Return True if a test fails when the kernels cannot be loaded."""
    return are_required and can_run


def skip_or_fail(reason: str) -> None:
    """Skip the running test because it has no kernels, or fail it if they are required."""
    if are_kernels_required():
        pytest.fail(f"CHATRPC_REQUIRE_KERNELS is set: {reason}")
    pytest.skip(reason)


def loaded(library: ctypes.CDLL | None) -> ctypes.CDLL:
    """Return the library. If it is None, the running test is skipped or fails."""
    if library is None:
        skip_or_fail("the native kernels cannot be built or used on this machine")
    assert library is not None
    return library
