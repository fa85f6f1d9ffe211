"""Channels to a service: in the clear or under TLS."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: who has signed the service's certificate, and what the client shows."""

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
        """Raise OSError unless the files can be used; gRPC would say that nothing can be reached.

        ssl.SSLError, which is an OSError, has the reason.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        if self.certificate is not None:
            # Without a passphrase at hand OpenSSL would ask the terminal for one.
            context.load_cert_chain(self.certificate, self.key, password="")


def channel(target: str, tls: Tls | None) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(target)
    return grpc.secure_channel(target, tls.credentials())


def aio_channel(target: str, tls: Tls | None) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target)
    return grpc.aio.secure_channel(target, tls.credentials())
