"""The archive has the tokenizer's files and nothing else of a model."""

import hashlib
import io
import os
import zipfile
from pathlib import Path

import pytest

from service.vllm_protocol.tokenizer_bundle import CHUNK_BYTES, load_tokenizer_bundle

FILES = {
    "tokenizer.json": b"{}",
    "config.json": b'{"model_type": "llama"}',
    "chat_template.jinja": b"{{ messages }}",
    "tokenizer.model": b"\x00\x01",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "secret.json").write_bytes(b"{}")
    return tmp_path


def test_archive_has_the_files_of_the_tokenizer_only(model: Path) -> None:
    bundle = load_tokenizer_bundle(model)
    with zipfile.ZipFile(io.BytesIO(bundle.data)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == FILES
    assert bundle.sha256 == hashlib.sha256(bundle.data).hexdigest()


def test_archives_of_equal_files_are_equal(model: Path) -> None:
    bundle = load_tokenizer_bundle(model)
    os.utime(model / "config.json", (1, 1))
    assert load_tokenizer_bundle(model) == bundle


def test_only_the_last_chunk_has_the_checksum(model: Path) -> None:
    (model / "tokenizer.json").write_bytes(os.urandom(2 * CHUNK_BYTES))
    bundle = load_tokenizer_bundle(model)
    *chunks, last = bundle.chunks()
    assert len(chunks) == 2
    assert b"".join(chunk.data for chunk in [*chunks, last]) == bundle.data
    assert {chunk.sha256 for chunk in chunks} == {""}
    assert last.sha256 == bundle.sha256
    assert all(len(chunk.data) <= CHUNK_BYTES for chunk in chunks)
