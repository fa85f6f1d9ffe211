import os
from pathlib import Path

import pytest

from service.fingerprint import content_digest, fingerprint


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(bytes(1_000_000))
    return tmp_path


def test_equal_files_and_precision_have_equal_fingerprints(model: Path) -> None:
    before = fingerprint(model, "auto", "int8")
    (model / "config.json").touch()
    assert fingerprint(model, "auto", "int8") == before
    assert before.startswith("fp_")


def test_other_precision_changes_the_fingerprint(model: Path) -> None:
    assert fingerprint(model, "auto", "int8") != fingerprint(model, "auto", "none")


@pytest.mark.parametrize("place", [0, 999_999])
def test_other_weights_change_the_fingerprint(model: Path, place: int) -> None:
    before = fingerprint(model)
    weights = bytearray(1_000_000)
    weights[place] = 1
    (model / "model.safetensors").write_bytes(weights)
    assert fingerprint(model) != before


def test_additional_file_changes_the_fingerprint(model: Path) -> None:
    before = fingerprint(model)
    (model / "chat_template.jinja").write_text("")
    assert fingerprint(model) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_unreadable_file_counts_by_its_size(model: Path) -> None:
    (model / "notes").write_text("private")
    (model / "notes").chmod(0)
    assert fingerprint(model).startswith("fp_")


@pytest.mark.parametrize("place", [0, 5000, 999_999])
def test_every_byte_changes_the_digest(model: Path, place: int) -> None:
    before = content_digest(model)
    assert content_digest(model) == before
    weights = bytearray(1_000_000)
    weights[place] = 1
    (model / "model.safetensors").write_bytes(weights)
    assert content_digest(model) != before


def test_name_of_a_file_changes_the_digest(model: Path) -> None:
    before = content_digest(model)
    (model / "config.json").rename(model / "other.json")
    assert content_digest(model) != before
