"""TLS credentials of the gRPC server. They follow their files, for every new connection."""

import grpc

from chatrpc_process.tls import Identity, TlsFiles
from chatrpc_process.watched import Watched


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files.

    Raises:
        ConfigError: the files cannot be read at first.
    """
    watched = Watched(files.read, *files.paths)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for every new connection, on a thread of gRPC's; None: as before."""
        return _configuration(watched.value) if watched.refresh() else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(watched.value),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that it may return None
        files.client_ca is not None,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], identity.client_ca
    )
