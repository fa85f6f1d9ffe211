"""The gateway's options: command line over environment over file over default."""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from chatrpc_process.settings.listener import ListenerSettings, Port

_UPSTREAM_FIELDS = {"upstream", "upstream_ca", "upstream_certificate", "upstream_key"}


class Settings(ListenerSettings):
    """The OpenAI-compatible HTTP front of a chatrpc service.

    Every option can also be set in the environment, as CHATRPC_GATEWAY_<NAME>, or in a TOML file.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_GATEWAY_",
        cli_prog_name="python -m gateway_http",
        cli_avoid_json=True,
    )

    new_names: ClassVar = {"shutdown_grace_s": "drain_timeout_s"}

    port: Annotated[Port, Field(description="the port to listen on; 0: any free one")] = 8000
    upstream: Annotated[
        str, Field(min_length=1, description="the gRPC service: host:port or a gRPC target URI")
    ] = "127.0.0.1:50051"
    registry: Annotated[
        Path | None,
        Field(description="a TOML file of models and their services, in place of UPSTREAM"),
    ] = None
    upstream_ca: Annotated[
        Path | None,
        Field(description="a PEM file: call the service under TLS, signed by it"),
    ] = None
    upstream_certificate: Annotated[
        Path | None, Field(description="a PEM file: what the gateway shows the service")
    ] = None
    upstream_key: Annotated[Path | None, Field(description="the certificate's key, a PEM file")] = (
        None
    )
    upstream_api_key_file: Annotated[
        Path | None,
        Field(description="a file with the key to call the service with; default: the caller's"),
    ] = None
    cors_allow_origins: Annotated[
        list[str] | None,
        Field(
            description="the origins whose pages may call the API from a browser; * is any; "
            "default: any with --api-keys, otherwise those of localhost"
        ),
    ] = None
    allowed_hosts: Annotated[
        list[str],
        Field(
            description="further names under which a gateway that only this machine can reach may "
            "be called without keys; * is any; default: localhost and IP addresses only"
        ),
    ] = []  # noqa: RUF012  # pydantic copies it
    max_body_bytes: Annotated[
        int, Field(gt=0, description="the largest request body that is read")
    ] = 8 << 20
    max_connections: Annotated[
        int,
        Field(
            gt=0,
            description="connections at once; for more, idle ones are closed, and if none is idle, "
            "requests on further ones are rejected with 503",
        ),
    ] = 1000
    max_connections_per_address: Annotated[
        int | None,
        Field(
            gt=0,
            description="connections at once of one client address, which may be a proxy's; "
            "default: no limit of their own",
        ),
    ] = None
    head_timeout_s: Annotated[
        float, Field(gt=0, description="how long the head of a request may take to arrive")
    ] = 10
    body_timeout_s: Annotated[
        float, Field(gt=0, description="how long the body of a request may take to arrive")
    ] = 60
    write_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="how long a client may leave unread what it is sent: its connection is cut "
            "if neither all that waited for it nor 64 KiB could be sent in this time",
        ),
    ] = 30
    keep_alive_timeout_s: Annotated[
        int, Field(ge=0, description="how long an idle connection is kept for another request")
    ] = 75
    request_timeout_s: Annotated[
        float, Field(gt=0, le=86_400, description="how long one completion may take")
    ] = 600
    sse_ping_interval_s: Annotated[
        float,
        Field(gt=0, description="how long a stream may be silent before a keep-alive comment"),
    ] = 15
    drain_delay_s: Annotated[
        float,
        Field(ge=0, description="how long to go on taking requests after SIGTERM, not ready"),
    ] = 0.0
    drain_timeout_s: Annotated[
        float, Field(ge=0, description="how long running requests may go on after that")
    ] = 30.0

    @model_validator(mode="after")
    def _models_come_from_one_place(self) -> Self:
        given = self.model_fields_set & _UPSTREAM_FIELDS
        if self.registry is not None and given:
            raise ValueError(f"registry and {min(given)} exclude each other")
        return self

    @model_validator(mode="after")
    def _admin_address_is_whole(self) -> Self:
        if "admin_host" in self.model_fields_set and self.admin_port is None:
            raise ValueError("admin_host needs admin_port")
        return self

    @model_validator(mode="after")
    def _upstream_tls_is_whole(self) -> Self:
        if (self.upstream_certificate is None) != (self.upstream_key is None):
            raise ValueError("upstream_certificate and upstream_key go together")
        if self.upstream_certificate is not None and self.upstream_ca is None:
            raise ValueError("upstream_certificate needs upstream_ca")
        return self
