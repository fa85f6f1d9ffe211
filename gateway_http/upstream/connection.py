"""How a service is reached: where, under which certificates, with which key, balanced how."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import read_small
from chatrpc_process.tls import Validity, ca_validity, certificate_validity
from gateway_http.upstream.service_config import DEFAULT_BALANCE, service_config

# What our service calls its readiness as a whole; each of its models has a name besides.
READINESS = "readiness"


@dataclass(frozen=True)
class Tls:
    """PEM: who has signed the service's certificate, and what the gateway shows."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Connection:
    """All that makes a channel. Equal ones need but one.

    Args:
        target: any gRPC target, such as `dns:///name:50051` or `ipv4:10.0.0.1:1,10.0.0.2:1`.
        health_name: what the health of a replica is asked for.
        api_key: shown instead of the caller's; None: the caller's is passed on.
    """

    target: str
    health_name: str = READINESS
    service_config: str = service_config(DEFAULT_BALANCE, READINESS)
    tls: Tls | None = None
    api_key: str | None = field(default=None, repr=False)


def tls_validities(ca: Path, certificate: Path | None) -> tuple[Validity, ...]:
    """Return when the certificates of the service's CA and of the gateway are valid.

    Raises:
        ConfigError: A file has no certificate.
    """
    own = () if certificate is None else (certificate_validity(certificate),)
    return (ca_validity(ca), *own)


def read_tls(ca: Path, certificate: Path | None, key: Path | None) -> Tls:
    """What is in the files.

    Raises:
        ConfigError: one cannot be read, or is no PEM file, or the key is another's.
    """
    paths = [path for path in (ca, certificate, key) if path is not None]
    contents = {path: read_small(path) for path in paths}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        if certificate is not None:
            # Without a passphrase at hand OpenSSL would ask the terminal for one, and wait.
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is one
        names = ", ".join(map(str, paths))
        raise ConfigError(f"{names}: {getattr(error, 'reason', None) or error}") from None
    return Tls(
        contents[ca],
        contents[certificate] if certificate is not None else None,
        contents[key] if key is not None else None,
    )
