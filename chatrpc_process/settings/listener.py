"""Settings of a process that listens: where, for whom, under which certificate."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import CliImplicitFlag

from chatrpc_process.settings.loopback import is_loopback
from chatrpc_process.settings.process import ProcessSettings
from chatrpc_process.tls import TlsFiles

Port = Annotated[int, Field(ge=0, le=65535)]


class ListenerSettings(ProcessSettings):
    """What a process that listens can be told. Subclasses add the port.

    It is refused to listen for other machines and ask nobody who it is, unless told to.
    """

    host: Annotated[str, Field(description="the address to listen on")] = "127.0.0.1"
    insecure: Annotated[
        CliImplicitFlag[bool],
        Field(description="listen beyond this machine and ask for neither keys nor certificates"),
    ] = False
    api_keys: Annotated[
        Path | None, Field(description="a file of API keys: take only their owners")
    ] = None
    tls_certificate: Annotated[Path | None, Field(description="a PEM file: serve under TLS")] = None
    tls_key: Annotated[Path | None, Field(description="the certificate's key, a PEM file")] = None
    tls_client_ca: Annotated[
        Path | None,
        Field(description="a PEM file: take only clients whose certificates it has signed"),
    ] = None
    admin_host: Annotated[
        str, Field(description="the address of the ports for probes and metrics")
    ] = "127.0.0.1"
    admin_port: Annotated[
        Port | None,
        Field(description="a port for probes, without keys and never under TLS; default: none"),
    ] = None

    @property
    def tls(self) -> TlsFiles | None:
        """The files to serve under; None: in the clear."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if self.tls_client_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        return self

    @model_validator(mode="after")
    def _is_not_open_by_accident(self) -> Self:
        asks = self.api_keys is not None or self.tls_client_ca is not None
        if not (asks or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"host {self.host} can be reached from other machines and nothing asks them who "
                "they are: give --api-keys, or --tls-client-ca with --tls-certificate and "
                "--tls-key, or listen on 127.0.0.1; --insecure listens all the same"
            )
        return self
