"""The library of the simulated CUDA device is shared by environments."""

import subprocess

import pytest

from tests.support.simulated_cuda.library import build


@pytest.mark.slow
def test_library_is_not_bound_to_the_folder_of_one_torch() -> None:
    command = ("readelf", "--dynamic", str(build()))
    section = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "libc10.so" in section
    assert "RUNPATH" not in section
    assert "RPATH" not in section
