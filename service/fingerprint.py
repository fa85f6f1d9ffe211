"""Hashes that identify a model: a short fingerprint for clients, and a digest of every byte."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


def fingerprint(path: Path, *options: str) -> str:
    """Return a hash of the model's files in `path`, of options and of our version."""
    digest = hashlib.sha256(repr((options, version("chatrpc"))).encode())
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        digest.update(repr((file.name, file.stat().st_size)).encode())
        with suppress(PermissionError):  # a file that the service does not need
            for sample in _samples(file):
                digest.update(sample)
    return f"fp_{digest.hexdigest()[:12]}"


def content_digest(path: Path) -> bytes:
    """Return a SHA-256 of every byte of the model's files in `path`, and of our version.

    It takes about a second for 2 GB in the page cache, so a fingerprint does not contain it.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256(version("chatrpc").encode())
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").digest()
        digest.update(repr((file.name, content)).encode())
    return digest.digest()


def _samples(file: Path) -> Iterator[bytes]:
    """Yield pieces from the whole length of a file. Reading all of it would take too long."""
    last = max(0, file.stat().st_size - _SAMPLE_BYTES)
    with file.open("rb") as opened:
        for i in range(_NUM_SAMPLES):
            opened.seek(last * i // (_NUM_SAMPLES - 1))
            yield opened.read(_SAMPLE_BYTES)
