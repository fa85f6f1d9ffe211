"""gRPC channels to a service, with or without TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the CA of the service's certificate, and the client's certificate and key."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            self.ca.read_bytes(),
            None if self.key is None else self.key.read_bytes(),
            None if self.certificate is None else self.certificate.read_bytes(),
        )

    def check(self) -> None:
        """Check that the files can be used: gRPC would only report a failed connection.

        Raises:
            OSError: A file cannot be used. ssl.SSLError, a subclass, has the reason.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        if self.certificate is not None:
            # Without a password, OpenSSL would prompt for one in the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")


def channel(target: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, tls.credentials())


def aio_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target)
    return grpc.aio.secure_channel(target, tls.credentials())
