"""A cache directory that cannot be written to."""

import shutil
from pathlib import Path

import pytest

from service.cache import default_cache_dir
from tests.support.programs import Launch, RealService
from tests.support.tiny_model import save_model

pytestmark = pytest.mark.slow


@pytest.fixture
def read_only(tmp_path: Path) -> Path:
    directory = tmp_path / "cache"
    directory.mkdir()
    return directory


async def test_conversion_into_a_read_only_cache_is_rejected(
    launch: Launch, read_only: Path
) -> None:
    _lock(read_only)
    service = launch(
        RealService("--cache-dir", str(read_only), env={"CXX": "/nowhere/c++"}, is_privileged=False)
    )
    assert await service.ended() == 1
    [line] = [line for line in service.lines if '"level": "error"' in line]
    assert "cannot be converted" in line
    assert str(read_only) in line
    assert "Permission denied" in line
    assert "Traceback" not in service.log


async def test_converted_model_is_read_from_a_read_only_cache(
    launch: Launch, read_only: Path, tmp_path: Path
) -> None:
    native = default_cache_dir() / "native"
    if not native.is_dir():
        pytest.skip("no kernels have been compiled here yet")
    shutil.copytree(native, read_only / "native")
    _lock(read_only)
    model = save_model(tmp_path / "tiny", vocab_size=300)
    service = launch(
        RealService("--model", str(model), "--cache-dir", str(read_only), is_privileged=False)
    )
    await service.ready()
    assert not service.events("native_kernels_not_cached")


def _lock(directory: Path) -> None:
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
