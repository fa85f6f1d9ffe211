from pathlib import Path

import pytest
from structlog.testing import capture_logs

from chatrpc_process.errors import ConfigError
from chatrpc_process.files.watched import Watched


def read_number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "number").write_text("1")
    return tmp_path / "number"


@pytest.fixture
def watched(path: Path) -> Watched[int]:
    return Watched(lambda: read_number(path), path)


def replace(path: Path, text: str) -> None:
    """Rename another file to `path`, as Kubernetes does."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.rename(path)


def test_changed_file_is_read(watched: Watched[int], path: Path) -> None:
    assert watched.value == 1
    assert not watched.refresh()
    replace(path, "2")
    assert watched.refresh()
    assert watched.value == 2
    assert not watched.refresh()


@pytest.mark.parametrize("text", ["", "two", None])
def test_invalid_change_keeps_the_value(
    watched: Watched[int], path: Path, text: str | None
) -> None:
    if text is None:
        path.unlink()
    else:
        replace(path, text)
    with capture_logs() as logs:
        assert not watched.refresh()
        assert not watched.refresh()
    assert watched.value == 1
    assert [entry["event"] for entry in logs] == ["file_reload_failed"]  # once for each change
    replace(path, "3")
    assert watched.refresh()
    assert watched.value == 3


def test_invalid_change_is_tried_again(path: Path, tmp_path: Path) -> None:
    (tmp_path / "1").write_text("1")
    watched = Watched(lambda: read_number(tmp_path / path.read_text()), path)
    replace(path, "later")
    with capture_logs() as logs:
        assert not watched.refresh()
        assert not watched.refresh()
        (tmp_path / "later").write_text("2")
        assert watched.refresh()
    assert watched.value == 2
    assert not watched.refresh()
    assert [entry["event"] for entry in logs] == ["file_reload_failed", "file_reloaded"]


def test_unexpected_error_keeps_the_value_and_is_not_quoted(path: Path) -> None:
    def read() -> int:
        if path.read_text() == "2":
            raise RuntimeError("sk-secret")
        return read_number(path)

    watched = Watched(read, path)
    replace(path, "2")
    with capture_logs() as logs:
        assert not watched.refresh()
    [entry] = logs
    assert (entry["reason"], entry["files"]) == ("RuntimeError", [str(path)])
    replace(path, "3")
    assert watched.refresh()
    assert watched.value == 3


def test_first_content_must_be_valid(tmp_path: Path) -> None:
    path = tmp_path / "none"
    with pytest.raises(ConfigError):
        Watched(lambda: read_number(path), path)


def test_change_of_any_file_is_read(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("10")
    watched = Watched(lambda: read_number(path) + read_number(other), path, other)
    replace(other, "20")
    assert watched.refresh()
    assert watched.value == 21
