"""The connection to a service: its target, certificates, API key and service config."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path

from chatrpc_process.errors import ConfigError
from chatrpc_process.files.small_file import read_small
from chatrpc_process.tls import Validity, ca_validity, certificate_validity
from gateway_http.upstream.service_config import DEFAULT_BALANCE, service_config

# The health name of the service as a whole. Each of its models has a health name, too: its id.
READINESS = "readiness"


@dataclass(frozen=True)
class Tls:
    """The CA of the service's certificate, and the gateway's own certificate and key, as PEM."""

    ca: bytes
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Connection:
    """Everything that determines a channel. Equal connections share one channel.

    Args:
        target: Any gRPC target, such as `dns:///name:50051` or `ipv4:10.0.0.1:1,10.0.0.2:1`.
        health_name: The name whose health decides whether a replica gets calls.
        service_config: gRPC's service config, as JSON.
        tls: The certificates; None if calls are made without TLS.
        api_key: The key to send instead of the caller's; None if the caller's is passed on.
    """

    target: str
    health_name: str = READINESS
    service_config: str = service_config(DEFAULT_BALANCE, READINESS)
    tls: Tls | None = None
    api_key: str | None = field(default=None, repr=False)


def tls_validities(ca: Path, certificate: Path | None) -> tuple[Validity, ...]:
    """Return the periods in which the service's CA and the gateway's certificate are valid.

    Raises:
        ConfigError: A file has no certificate.
    """
    own = () if certificate is None else (certificate_validity(certificate),)
    return (ca_validity(ca), *own)


def read_tls(ca: Path, certificate: Path | None, key: Path | None) -> Tls:
    """Read the certificates and the key of a connection.

    Raises:
        ConfigError: A file cannot be read or is not PEM, or the key does not fit the certificate.
    """
    paths = [path for path in (ca, certificate, key) if path is not None]
    contents = {path: read_small(path) for path in paths}
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(ca)
        if certificate is not None:
            # Without this argument, OpenSSL would ask for a passphrase at the terminal.
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is a subclass
        names = ", ".join(map(str, paths))
        raise ConfigError(f"{names}: {getattr(error, 'reason', None) or error}") from None
    return Tls(
        contents[ca],
        contents[certificate] if certificate is not None else None,
        contents[key] if key is not None else None,
    )
