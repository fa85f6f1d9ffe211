import ctypes
from pathlib import Path

import pytest

from service.engine.native.build import load_library


@pytest.fixture(scope="session")
def kernels_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory, with the built kernels if this machine can build them."""
    directory = tmp_path_factory.mktemp("kernels")
    load_library(directory)
    return directory


@pytest.fixture(scope="session")
def kernels(kernels_dir: Path) -> ctypes.CDLL | None:
    return load_library(kernels_dir)
