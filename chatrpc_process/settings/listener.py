"""Settings of a process that listens: address, authentication and certificates."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import CliImplicitFlag

from chatrpc_process.settings.loopback import is_loopback
from chatrpc_process.settings.process import ProcessSettings
from chatrpc_process.tls import TlsFiles

Port = Annotated[int, Field(ge=0, le=65535)]


class ListenerSettings(ProcessSettings):
    """The options of a process that listens. A subclass adds the port.

    A process that listens on an address other than loopback needs API keys, client certificates or
    `insecure`.
    """

    host: Annotated[
        str,
        Field(
            description="Address to listen on. An address that other machines can reach needs "
            "`api_keys`, `tls_client_ca` or `insecure`."
        ),
    ] = "127.0.0.1"
    insecure: Annotated[
        CliImplicitFlag[bool],
        Field(
            description="Accept remote connections without authentication. Without this option, a "
            "process with neither `api_keys` nor `tls_client_ca` only starts on a loopback address."
        ),
    ] = False
    api_keys: Annotated[
        Path | None,
        Field(
            description="Path of a file of API keys. Every request then needs one of them. The "
            "file is read again when it changes."
        ),
    ] = None
    tls_certificate: Annotated[
        Path | None,
        Field(
            description="Path of a PEM file with the server's certificate. The process then serves "
            "under TLS only; it needs `tls_key`. The file is read again when it changes."
        ),
    ] = None
    tls_key: Annotated[
        Path | None, Field(description="Path of a PEM file with the key of `tls_certificate`.")
    ] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(
            description="Path of a PEM file with a certificate authority. Clients then need a "
            "certificate that this authority has signed."
        ),
    ] = None
    admin_host: Annotated[
        str, Field(description="Address to listen on for probes and metrics.")
    ] = "127.0.0.1"
    admin_port: Annotated[
        Port | None,
        Field(
            description="Port for probes, which needs no keys and never uses TLS. By default there "
            "is no such port."
        ),
    ] = None

    @property
    def tls(self) -> TlsFiles | None:
        """The files of the server's certificate; None if the process serves without TLS."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @model_validator(mode="after")
    def _tls_options_are_complete(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key must be given together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @model_validator(mode="after")
    def _remote_address_has_authentication(self) -> Self:
        authenticates = self.api_keys is not None or self.tls_client_ca is not None
        if not (authenticates or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"other machines can reach host {self.host}, and clients are not authenticated. "
                "Give --api-keys, or --tls-client-ca with --tls-certificate and --tls-key, or "
                "listen on 127.0.0.1. With --insecure the process starts nevertheless."
            )
        return self
