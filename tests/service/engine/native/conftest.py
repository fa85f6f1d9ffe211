import ctypes
from pathlib import Path

import pytest

from service.engine.native.build import load_library
from tests.support.native_kernels import LEVELS_TO_TEST


@pytest.fixture(scope="session")
def kernels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory, with the built kernels if this machine can build them."""
    directory = tmp_path_factory.mktemp("kernels")
    load_library(directory)
    return directory


@pytest.fixture(scope="session")
def level_kernels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory for the kernels of all levels."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=LEVELS_TO_TEST)
def kernels(request: pytest.FixtureRequest, level_kernels_dir: Path) -> ctypes.CDLL | None:
    """Return the kernels of each level to test."""
    return load_library(level_kernels_dir, request.param)
