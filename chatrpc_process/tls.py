"""A server's certificate, its key, and whose certificates it asks for, in files."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from chatrpc_process.settings import ConfigError


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca`, callers need a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(p for p in (self.certificate, self.key, self.client_ca) if p is not None)

    def read(self) -> "Identity":
        """What is in the files.

        Raises:
            ConfigError: one of them cannot be read, or is no PEM file, or the key is another's.
        """
        contents = []
        for path in self.paths:
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from None
            if b"-----BEGIN " not in contents[-1]:
                raise ConfigError(f"{path}: this is no PEM file.")
        try:  # of two files that change one after the other, a pair is needed
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.certificate}, {self.key}: {error}") from None
        return Identity(contents[1], contents[0], contents[2] if self.client_ca else None)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows, and whose callers it takes."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None
