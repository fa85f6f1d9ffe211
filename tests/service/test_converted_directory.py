import errno
from pathlib import Path

import pytest
from safetensors import SafetensorError

from service.converted_directory import is_complete, reason, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    seal(tmp_path)
    return tmp_path


def test_sealed_directory_is_complete(sealed: Path) -> None:
    assert is_complete(sealed)


def test_directory_without_a_seal_is_not_complete(sealed: Path) -> None:
    (sealed / "conversion.json").unlink()
    assert not is_complete(sealed)
    assert not is_complete(sealed / "none")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "conversion.json"])
def test_directory_with_a_truncated_file_is_not_complete(sealed: Path, name: str) -> None:
    (sealed / name).write_bytes((sealed / name).read_bytes()[:1])
    assert not is_complete(sealed)
    (sealed / name).unlink()
    assert not is_complete(sealed)


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "\0\0"])
def test_directory_with_a_damaged_seal_is_not_complete(sealed: Path, content: str) -> None:
    (sealed / "conversion.json").write_text(content)
    assert not is_complete(sealed)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        SafetensorError("Error while serializing:\nI/O error (os error 28)"),
        caused(RuntimeError("Error while serializing:"), OSError(errno.ENOSPC, "no")),
    ],
)
def test_full_disk_is_named(error: Exception) -> None:
    assert reason(error) == "the disk is full (No space left on device)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("Error while serializing:\n  I/O error"), "Error while serializing: I/O error"),
        (ValueError(""), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (caused(ValueError("outer"), KeyError("inner")), "outer"),
    ],
)
def test_other_reasons_are_one_line(error: Exception, line: str) -> None:
    assert reason(error) == line
