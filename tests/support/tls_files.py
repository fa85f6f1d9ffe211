"""Certificate files for tests of servers with TLS."""

import os
from datetime import datetime
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from chatrpc_process.tls import TlsFiles


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.utime(
        path, ns=(0, int.from_bytes(os.urandom(6), "big"))
    )  # the modification time always changes


def issue(
    ca: trustme.CA,
    directory: Path,
    *,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
) -> TlsFiles:
    """Write a new certificate for `localhost` and its key. Return their paths."""
    certificate = ca.issue_cert(
        "localhost", "127.0.0.1", not_before=not_before, not_after=not_after
    )
    files = TlsFiles(directory / "tls.crt", directory / "tls.key")
    write(files.certificate, b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    write(files.key, certificate.private_key_pem.bytes())
    return files


def lock(key: Path) -> None:
    """Encrypt the key with a passphrase."""
    locked = serialization.load_pem_private_key(key.read_bytes(), None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    write(key, locked)
