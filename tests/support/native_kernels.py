"""Whether tests may do without the native kernels.

With CHATRPC_REQUIRE_KERNELS=1, as in CI, kernels that do not compile fail the tests of them. A CPU
that cannot run them still skips those that run them; `test_prebuilt.py` compiles them there too.
"""

import ctypes
import os
import shutil
from pathlib import Path

import pytest

_CPUINFO = Path("/proc/cpuinfo")

ARE_REQUIRED = os.environ.get("CHATRPC_REQUIRE_KERNELS", "0") not in {"", "0"}
HAS_VNNI = _CPUINFO.exists() and "avx512_vnni" in _CPUINFO.read_text()
HAS_COMPILER = ARE_REQUIRED or shutil.which("g++") is not None  # without one those tests fail


def are_kernels_required(*, are_required: bool = ARE_REQUIRED, can_run: bool = HAS_VNNI) -> bool:
    """Whether kernels that cannot be loaded are a failure."""
    return are_required and can_run


def skip_or_fail(reason: str) -> None:
    """Skip the test that runs for want of kernels, or fail it where they are required."""
    if are_kernels_required():
        pytest.fail(f"CHATRPC_REQUIRE_KERNELS is set: {reason}")
    pytest.skip(reason)


def loaded(library: ctypes.CDLL | None) -> ctypes.CDLL:
    """The library; without one, the test that runs is skipped or fails."""
    if library is None:
        skip_or_fail("the native kernels cannot be built or used on this machine")
    assert library is not None
    return library
