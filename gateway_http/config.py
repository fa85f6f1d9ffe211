"""The gateway's options: command line over environment over file over default."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from chatrpc_process.settings import ProcessSettings


class Settings(ProcessSettings):
    """The OpenAI-compatible HTTP front of a chatrpc service.

    Every option can also be set in the environment, as CHATRPC_GATEWAY_<NAME>, or in a TOML file.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_GATEWAY_",
        cli_prog_name="python -m gateway_http",
        cli_avoid_json=True,
    )

    host: Annotated[str, Field(description="the address to listen on")] = "127.0.0.1"
    port: Annotated[
        int, Field(ge=0, le=65535, description="the port to listen on; 0 picks a free one")
    ] = 8000
    upstream: Annotated[
        str, Field(min_length=1, description="the gRPC service: host:port or a gRPC target URI")
    ] = "127.0.0.1:50051"
    cors_allow_origins: Annotated[
        list[str],
        Field(description="the origins whose pages may call the API from a browser; * is any"),
    ] = ["*"]  # noqa: RUF012  # pydantic copies it
    max_body_bytes: Annotated[
        int, Field(gt=0, description="the largest request body that is read")
    ] = 8 << 20
    request_timeout_s: Annotated[
        float, Field(gt=0, le=86_400, description="how long one completion may take")
    ] = 600
    sse_ping_interval_s: Annotated[
        float,
        Field(gt=0, description="how long a stream may be silent before a keep-alive comment"),
    ] = 15
    shutdown_grace_s: Annotated[
        int, Field(ge=0, description="how long running requests may go on after SIGTERM")
    ] = 30
