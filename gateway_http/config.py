"""The gateway's options."""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import SettingsConfigDict

from chatrpc_process.settings.listener import ListenerSettings, Port

_UPSTREAM_FIELDS = {"upstream", "upstream_ca", "upstream_certificate", "upstream_key"}


class Settings(ListenerSettings):
    """Serve the models of chatrpc services over an OpenAI-compatible HTTP API.

    Each option can also be set in the environment, as CHATRPC_GATEWAY_<NAME>, or in a TOML file.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_GATEWAY_",
        cli_prog_name="python -m gateway_http",
        cli_avoid_json=True,
    )

    new_names: ClassVar = {"shutdown_grace_s": "drain_timeout_s"}

    port: Annotated[Port, Field(description="Port to listen on. 0 chooses a free port.")] = 8000
    upstream: Annotated[
        str,
        Field(
            min_length=1,
            description="The gRPC service: host:port, or a gRPC target such as `dns:///name:50051`.",
        ),
    ] = "127.0.0.1:50051"
    registry: Annotated[
        Path | None,
        Field(
            description="Path of a TOML file with models and their services, which replaces "
            "`upstream`. The file is read again when it changes."
        ),
    ] = None
    models: Annotated[
        list[str],
        Field(
            description="Models that the gateway hosts, instead of `upstream`, separated by "
            "commas: each is a name, a directory, a .gguf file or an id of the Hugging Face hub, "
            "or `NAME=` and one of these. A service process is started for a model when it is "
            "needed. The `registry` may have such models too."
        ),
    ] = []  # noqa: RUF012  # pydantic copies the default
    models_memory: Annotated[
        ByteSize | None,
        Field(
            gt=0,
            description="Memory for all hosted models together, such as `16GiB`. Before another "
            "model is loaded, the least recently used ones are unloaded. By default there is no "
            "limit.",
        ),
    ] = None
    model_idle_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="Time in seconds without requests after which a hosted model is unloaded; "
            "0 if it is never unloaded for that reason.",
        ),
    ] = 300
    model_load_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time in seconds for which a request waits for a hosted model to "
            "be loaded, which fails with 504 after that. A process that takes longer to be ready "
            "is ended.",
        ),
    ] = 600
    model_queue_size: Annotated[
        int,
        Field(
            gt=0,
            description="Maximum number of requests that wait for one hosted model to be loaded. "
            "Further ones are rejected with 503.",
        ),
    ] = 256
    upstream_ca: Annotated[
        Path | None,
        Field(
            description="Path of a PEM file with the certificate authority of the service. The "
            "gateway then calls the service under TLS."
        ),
    ] = None
    upstream_certificate: Annotated[
        Path | None,
        Field(
            description="Path of a PEM file with the gateway's own certificate, for a service that "
            "requires one. It needs `upstream_key` and `upstream_ca`."
        ),
    ] = None
    upstream_key: Annotated[
        Path | None, Field(description="Path of a PEM file with the key of `upstream_certificate`.")
    ] = None
    upstream_api_key_file: Annotated[
        Path | None,
        Field(
            description="Path of a file with the API key for all calls to the service. By default "
            "the gateway forwards the client's key."
        ),
    ] = None
    response_store: Annotated[
        Path | None,
        Field(
            description="Path of a SQLite file in which responses of `/v1/responses` are stored, "
            "for `previous_response_id` and `GET`. By default responses are not stored."
        ),
    ] = None
    response_store_max_bytes: Annotated[
        int,
        Field(
            gt=0,
            description="Maximum size of the stored responses, in bytes. If there is more, those "
            "that were used longest ago are deleted.",
        ),
    ] = 1 << 30
    response_store_max_age_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time in seconds after which a stored response is deleted, unless a later "
            "response has continued its conversation.",
        ),
    ] = 30 * 86_400
    cors_allow_origins: Annotated[
        list[str] | None,
        Field(
            description="Origins whose pages may call the API from a browser, separated by commas; "
            "`*` is any origin. By default, any origin may call it if `api_keys` is set, and "
            "otherwise only origins of localhost."
        ),
    ] = None
    allowed_hosts: Annotated[
        list[str],
        Field(
            description="Further host names that are accepted in the Host header, separated by "
            "commas; `*` is any name. They matter only if the gateway listens on a loopback "
            "address without keys. Only these names, localhost and IP addresses are then accepted; "
            "requests for other names are rejected with 403."
        ),
    ] = []  # noqa: RUF012  # pydantic copies the default
    max_body_bytes: Annotated[
        int,
        Field(
            gt=0,
            description="Maximum size of a request body, in bytes. Larger bodies are rejected with "
            "413.",
        ),
    ] = 8 << 20
    max_connections: Annotated[
        int,
        Field(
            gt=0,
            description="Maximum number of connections. If there are more, idle connections are "
            "closed; if none is idle, requests on the new connections are rejected with 503.",
        ),
    ] = 1000
    max_connections_per_address: Annotated[
        int | None,
        Field(
            gt=0,
            description="Maximum number of connections of one client address, which may be a "
            "proxy's. Further connections are treated as with `max_connections`. By default "
            "there is no such limit.",
        ),
    ] = None
    head_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time to receive the head of a request, in seconds. After that, "
            "the request fails with 408.",
        ),
    ] = 10
    body_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time to receive the body of a request, in seconds. After that, "
            "the request fails with 408.",
        ),
    ] = 60
    write_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="Maximum time in seconds for which a client may leave a response unread. "
            "The connection is closed if neither all waiting data nor 64 KiB could be sent in this "
            "time.",
        ),
    ] = 30
    keep_alive_timeout_s: Annotated[
        int,
        Field(ge=0, description="Time in seconds after which an idle connection is closed."),
    ] = 75
    request_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            le=86_400,
            description="Maximum duration of a completion, in seconds. A longer one fails with "
            "504.",
        ),
    ] = 600
    sse_ping_interval_s: Annotated[
        float,
        Field(
            gt=0,
            description="Time in seconds without data after which a stream sends a keep-alive "
            "comment.",
        ),
    ] = 15
    drain_delay_s: Annotated[
        float,
        Field(
            ge=0,
            description="Time in seconds after SIGTERM during which the gateway reports that it is "
            "not ready and still accepts requests, so that routers can react.",
        ),
    ] = 0.0
    drain_timeout_s: Annotated[
        float,
        Field(
            ge=0,
            description="Maximum time in seconds, after the drain delay, for running requests to "
            "finish. Those that remain are aborted.",
        ),
    ] = 30.0

    @model_validator(mode="after")
    def _models_have_one_source(self) -> Self:
        given = self.model_fields_set & _UPSTREAM_FIELDS
        if self.models and self.registry is not None:
            raise ValueError("registry and models cannot be given together")
        source = "models" if self.models else "registry"
        if given and (self.models or self.registry is not None):
            raise ValueError(f"{source} and {min(given)} cannot be given together")
        return self

    @model_validator(mode="after")
    def _admin_host_has_a_port(self) -> Self:
        if "admin_host" in self.model_fields_set and self.admin_port is None:
            raise ValueError("admin_host needs admin_port")
        return self

    @model_validator(mode="after")
    def _upstream_tls_options_are_complete(self) -> Self:
        if (self.upstream_certificate is None) != (self.upstream_key is None):
            raise ValueError("upstream_certificate and upstream_key must be given together")
        if self.upstream_certificate is not None and self.upstream_ca is None:
            raise ValueError("upstream_certificate needs upstream_ca")
        return self
