"""The service's settings."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import CliImplicitFlag, SettingsConfigDict

from chatrpc_process.settings.listener import ListenerSettings, Port
from service.cache import default_cache_dir


class ServiceSettings(ListenerSettings):
    """chatrpc inference service: chat completions over gRPC.

    Each option can also be set in the environment, as CHATRPC_SERVICE_<NAME>, or in a TOML file.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_SERVICE_",
        cli_prog_name="python -m service",
        cli_avoid_json=True,
        protected_namespaces=(),  # `model_aliases` is about a model, not about pydantic
    )

    new_names: ClassVar = {
        "max_request_s": "request_timeout_s",
        "message_timeout_s": "body_timeout_s",
    }

    model: str = Field(
        "smollm2-135m-instruct",
        description="the embedded model's name, a directory, a .gguf file or a hub id",
    )
    served_model_name: str | None = Field(
        None, description="the model's id for clients; default: made from MODEL"
    )
    model_aliases: list[str] = Field([], description="further names that clients may use")
    cache_dir: Path = Field(default_cache_dir(), description="where converted models are kept")

    port: Port = Field(50051, description="the port to listen on; 0: any free one")
    metrics_port: Port | None = Field(
        None, description="a port of ADMIN_HOST for Prometheus' metrics; default: none"
    )
    channelz: CliImplicitFlag[bool] = Field(
        False, description="let callers of ADMIN_PORT see connections, and from where they are"
    )
    reflection: CliImplicitFlag[bool] = Field(True, description="let clients ask for the protos")

    tool_format: Literal[
        "auto", "hermes", "llama3_json", "mistral", "mistral_args", "gemma", "gemma4", "json"
    ] = Field("auto", description="how the model writes calls of functions; auto: by its template")
    reasoning_format: Literal["auto", "none", "think", "mistral"] = Field(
        "auto", description="how the model marks its thoughts; auto: by its template"
    )

    json_whitespace: Literal["flexible", "compact"] = Field(
        "flexible",
        description=(
            "White space in generated JSON. `flexible`: one space, or a line break with "
            "indentation, as the model chooses. `compact`: none."
        ),
    )

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of weights and cache; auto: bfloat16 if the hardware has it"
    )
    quantization: Literal["auto", "none", "int8"] = Field(
        "auto", description="of weights and activations; auto: int8 on a CPU unless DTYPE is set"
    )
    max_model_len: Annotated[int, Field(ge=2)] | None = Field(
        None, description="longest prompt and answer together, in tokens; default: the model's own"
    )
    max_num_seqs: Annotated[int, Field(ge=1)] = Field(32, description="sequences that run at once")
    max_num_batched_tokens: Annotated[int, Field(ge=1)] = Field(
        512, description="tokens computed in one step; prompts are read in chunks of this size"
    )
    max_queue_size: Annotated[int, Field(ge=0)] = Field(
        256, description="sequences that wait besides those that run; more are refused"
    )
    kv_cache_memory_bytes: ByteSize | None = Field(
        None, description="memory for keys and values; default: 1 GiB or 4 full sequences"
    )
    num_threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="CPU threads of the engine; default: the CPUs the process may use"
    )
    block_size: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="tokens in a block of the KV cache"
    )
    prefix_caching: CliImplicitFlag[bool] = Field(
        True, description="share the cache of prompts that begin alike, a block at a time"
    )
    speculation: Literal["none", "ngram"] = Field(
        "ngram", description="guess at tokens by what followed the last ones before"
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] = Field(
        8, description="the most tokens guessed at in a step of a sequence"
    )

    step_timeout_s: Annotated[float, Field(gt=0)] = Field(
        120.0, description="seconds without a step, while there is work, after which all is lost"
    )
    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="seconds a request may take, whatever its deadline"
    )
    body_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="seconds that a request's message may take to arrive"
    )
    write_timeout_s: Annotated[float, Field(gt=0)] = Field(
        60.0, description="seconds that a client may leave unread what it is sent"
    )
    drain_delay_s: Annotated[float, Field(ge=0)] = Field(
        0.0, description="seconds to go on taking requests after SIGTERM, while routers notice"
    )
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(
        30.0, description="seconds that running requests have to finish after that"
    )

    @model_validator(mode="after")
    def _budget_covers_a_step(self) -> Self:
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                "max_num_batched_tokens must be at least max_num_seqs: "
                "each running sequence needs one token a step"
            )
        return self

    @model_validator(mode="after")
    def _quantization_fits_the_device(self) -> Self:
        if self.device == "cuda" and self.quantization == "int8":
            raise ValueError("quantization=int8 is served on CPUs only, and device=cuda is set")
        return self

    @model_validator(mode="after")
    def _channelz_has_a_port(self) -> Self:
        if self.channelz and self.admin_port is None:
            raise ValueError("channelz needs admin_port")
        return self
