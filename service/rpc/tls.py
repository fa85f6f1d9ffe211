"""The server's certificate, read again when its files change, for connections made from then on."""

from dataclasses import dataclass
from pathlib import Path

import grpc

from chatrpc_process.settings import ConfigError
from chatrpc_process.watched import Watched


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
            ConfigError: one of them cannot be read, or is no PEM file.
        """
        contents = []
        for path in self.paths:
            try:
                contents.append(path.read_bytes())
            except OSError as error:
                raise ConfigError(f"{path}: {error.strerror}") from None
            if b"-----BEGIN " not in contents[-1]:
                raise ConfigError(f"{path}: this is no PEM file.")
        return Identity(contents[1], contents[0], contents[2] if self.client_ca else None)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a server shows, and whose callers it takes."""

    key: bytes
    certificate: bytes
    client_ca: bytes | None

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self.key, self.certificate)], self.client_ca
        )


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files.

    Raises:
        ConfigError: the files cannot be read at first.
    """
    watched = Watched(files.read, *files.paths)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for every new connection, on a thread of gRPC's; None: as before."""
        return watched.value.configuration() if watched.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        watched.value.configuration(),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that it may return None
        files.client_ca is not None,
    )
