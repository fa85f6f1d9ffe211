"""TLS credentials of the gRPC server. Changed files take effect for new connections."""

import grpc

from chatrpc_process.files.watched import Watched
from chatrpc_process.tls import Identity


def server_credentials(watched: Watched[Identity]) -> grpc.ServerCredentials:
    """Return credentials that use, for each new connection, the current content of the files."""
    shown = watched.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration; None if it has not changed.

        gRPC calls it for every new connection, on a thread of its own.
        """
        nonlocal shown
        watched.refresh()
        if watched.value is shown:
            return None
        shown = watched.value
        return _configuration(shown)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(shown),
        fetch,  # type: ignore[arg-type]  # it may return None, unlike in the stubs
        shown.client_ca is not None,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.certificate)], identity.client_ca
    )
