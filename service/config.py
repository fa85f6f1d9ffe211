"""The service's settings."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, ByteSize, Field, model_validator
from pydantic_settings import CliImplicitFlag, SettingsConfigDict

from chatrpc_process.errors import ConfigError
from chatrpc_process.settings.listener import ListenerSettings, Port
from service.domain.engine_settings import (
    DEFAULT_MAX_STEP_MS,
    DEFAULT_SPECULATIVE_TOKENS,
    CpuLevel,
    Device,
    DType,
    EngineSettings,
    KVCacheDType,
    Quantization,
)
from service.domain.timeouts import ClientTimeouts
from service.engines import check_engine_name
from service.upstream_url import api_url

# The defaults of options stand in these classes.
_ENGINE = EngineSettings()
_CLIENT = ClientTimeouts()


def _checked_engine(name: str) -> str:
    try:
        check_engine_name(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


_UPSTREAM_FIELDS = frozenset(
    (
        *("upstream_url", "upstream_model", "upstream_dialect", "upstream_api_key_file"),
        *("upstream_ca", "upstream_certificate", "upstream_key"),
        *("upstream_connect_timeout_s", "upstream_read_timeout_s"),
    )
)
# The options that an upstream decides itself, or that need an engine in this process.
_ENGINE_FIELDS = frozenset(
    (
        *("device", "dtype", "quantization", "kv_cache_dtype"),
        *("max_num_batched_tokens", "kv_cache_memory_bytes"),
        *("gpu_memory_utilization", "max_step_ms"),
        *("num_threads", "cpu_level", "block_size", "prefix_caching"),
        *("speculation", "num_speculative_tokens"),
        *("prefix_cache_dir", "prefix_cache_disk_bytes"),
        *("step_timeout_s", "vllm_args", "tool_format", "reasoning_format", "json_whitespace"),
        *("serve_vllm_protocol", "task"),
    )
)

# The options that have no effect on a model without generation.
GENERATION_FIELDS = frozenset(
    (
        *("quantization", "kv_cache_dtype", "kv_cache_memory_bytes", "gpu_memory_utilization"),
        *("max_step_ms", "cpu_level", "block_size", "prefix_cache_dir", "prefix_cache_disk_bytes"),
        *("speculation", "num_speculative_tokens", "vllm_args", "tool_format", "reasoning_format"),
        *("json_whitespace", "serve_vllm_protocol"),
    )
)


class ServiceSettings(ListenerSettings):
    """Serve a language model over gRPC.

    Each option can also be set in the environment, as CHATRPC_SERVICE_<NAME>, or in a TOML file.
    """

    model_config = SettingsConfigDict(
        env_prefix="CHATRPC_SERVICE_",
        cli_prog_name="python -m service",
        cli_avoid_json=True,
        protected_namespaces=(),  # pydantic reserves names such as `model_aliases`
    )

    new_names: ClassVar = {
        "max_request_s": "request_timeout_s",
        "message_timeout_s": "body_timeout_s",
    }

    model: str = Field(
        "smollm2-135m-instruct",
        description="The model to serve: the name of the embedded model, a directory, a .gguf file "
        "or an id of the Hugging Face hub.",
    )
    task: Literal["auto", "generate", "embed", "classify", "score"] = Field(
        "auto",
        description="Task of the model: to compute text, embeddings, scores of labels, or scores "
        "of pairs of texts (reranking). `auto` derives it from the files of the checkpoint.",
    )
    served_model_name: str | None = Field(
        None,
        description="The model's id for clients. By default it is made from `model`.",
    )
    model_aliases: list[str] = Field(
        [], description="Further names of the model for clients, separated by commas."
    )
    cache_dir: Path = Field(
        _ENGINE.cache_dir,
        description="Directory in which converted models and compiled kernels are kept.",
    )

    port: Port = Field(50051, description="Port to listen on. 0 chooses a free port.")
    metrics_port: Port | None = Field(
        None,
        description="Port on `admin_host` that serves metrics to Prometheus over HTTP. By default "
        "there is no such port.",
    )
    channelz: CliImplicitFlag[bool] = Field(
        False,
        description="Serve channelz on `admin_port`, which shows connections and their addresses.",
    )
    reflection: CliImplicitFlag[bool] = Field(
        True, description="Serve gRPC reflection, so that clients can fetch the protos."
    )

    serve_vllm_protocol: CliImplicitFlag[bool] = Field(
        False,
        description="Also serve vLLM's token-level gRPC protocol, `vllm.grpc.engine.VllmEngine`, "
        "for routers that send token ids. It needs the extra `vllm-protocol`.",
    )

    tool_format: Literal[
        "auto", "hermes", "llama3_json", "mistral", "mistral_args", "gemma", "gemma4", "json"
    ] = Field(
        "auto",
        description="Format in which the model writes tool calls. `auto` derives it from the chat "
        "template.",
    )
    reasoning_format: Literal["auto", "none", "think", "mistral"] = Field(
        "auto",
        description="Format in which the model marks its reasoning. `auto` derives it from the "
        "chat template.",
    )
    json_whitespace: Literal["flexible", "compact"] = Field(
        "flexible",
        description="White space in generated JSON. `flexible` allows one space, or a line break "
        "with indentation, as the model chooses. `compact` allows none.",
    )

    engine: Annotated[str, AfterValidator(_checked_engine)] = Field(
        "auto",
        description="Engine that generates tokens. `local` is this project's own. `vllm` is vLLM; "
        "it needs the extra `vllm`. `auto` is `vllm` if it is installed and there is a GPU, else "
        "`local`. An import string such as `my_package.engine:make_engine` names the factory of "
        "another one. `openai` has no engine: it calls the services of `upstream_url`.",
    )
    device: Device = Field(
        _ENGINE.device,
        description="Device that runs the model. `auto` is a CUDA device if there is one, else the "
        "CPU.",
    )
    dtype: DType = Field(
        _ENGINE.dtype,
        description="Data type of weights and KV cache. `auto` is bfloat16 if the hardware "
        "supports it, else float32.",
    )
    quantization: Quantization = Field(
        _ENGINE.quantization,
        description="Quantization of weights and activations. `int8` and `int4` need a CPU. `int4` "
        "has weights in 4 bits, and activations and the head in int8. It needs the native kernels. "
        "On a CPU, if `dtype` is `auto`, then `auto` is that of the checkpoint, or else int8 if "
        "the model loses little accuracy. In all other cases it is none.",
    )
    kv_cache_dtype: KVCacheDType = Field(
        _ENGINE.kv_cache_dtype,
        description="Data type of the KV cache, if it differs from that of `dtype`. `int8` needs "
        "about half of the memory of bfloat16. Decode over long contexts is faster, and prefill is "
        "slower. It needs the native kernels of a CPU. Only this project's own engine has this "
        "option.",
    )
    max_model_len: Annotated[int, Field(ge=2)] | None = Field(
        None,
        description="Maximum length of prompt and completion together, in tokens. The default is "
        "the model's own.",
    )
    max_num_seqs: Annotated[int, Field(ge=1)] | None = Field(
        _ENGINE.max_num_seqs,
        description="Maximum number of sequences that run at once. Further ones wait. The default "
        "of this project's own engine is 32 on a CPU and 256 on CUDA.",
    )
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = Field(
        _ENGINE.max_num_batched_tokens,
        description="Maximum number of tokens in one engine step. Longer prompts are prefilled in "
        "chunks over several steps. The default of this project's own engine is 512 on a CPU and "
        "2048 on CUDA.",
    )
    max_step_ms: Annotated[int, Field(ge=1)] | None = Field(
        _ENGINE.max_step_ms,
        description="Maximum predicted duration of one engine step, in milliseconds, while "
        "sequences generate tokens. Chunks of prompts are made short enough for it, so that "
        "running streams keep their pace. It is half as long again while at least four prompts are "
        "computed. It is an option of this project's own engine; the default is "
        f"{DEFAULT_MAX_STEP_MS}.",
    )
    max_queue_size: Annotated[int, Field(ge=0)] = Field(
        _ENGINE.max_queue_size,
        description="Maximum number of waiting sequences. If the queue is full, requests are "
        "rejected with QUEUE_FULL.",
    )
    kv_cache_memory_bytes: ByteSize | None = Field(
        None,
        description="Size of the KV cache in bytes, or with a unit such as `2GiB`. The default on "
        "a CPU is 1 GiB or 4 sequences of maximum length, whichever is more, up to half of the "
        "free memory. On CUDA, `gpu_memory_utilization` sets it.",
    )
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | None = Field(
        _ENGINE.gpu_memory_utilization,
        description="Share of a CUDA device's memory that weights, KV cache and steps may use "
        "together. The default of this project's own engine is 0.9.",
    )
    num_threads: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="CPU threads of the engine. The default is the number of CPUs that the process "
        "may use; a container's CPU quota counts.",
    )
    cpu_level: CpuLevel = Field(
        _ENGINE.cpu_level,
        description="CPU instructions that the native kernels use. `auto` means all that the CPU "
        "has. A level that the CPU lacks is an error. On x86-64, from the most capable: `amx`, "
        "`bf16` and `vnni` (all three AVX-512), `avxvnni` and `avx2`; on ARM `i8mm` and `dotprod`. "
        "`none` uses torch's operators instead of native kernels.",
    )
    block_size: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        _ENGINE.block_size,
        description="Tokens in one block of the KV cache. The native kernels need a multiple of "
        "16, fast attention on CUDA a multiple of 256. The default of this project's own engine is "
        "32 on a CPU and 256 on CUDA.",
    )
    prefix_caching: CliImplicitFlag[bool] = Field(
        _ENGINE.prefix_caching,
        description="Share cached blocks between prompts that begin with the same tokens.",
    )
    prefix_cache_dir: Path | None = Field(
        _ENGINE.prefix_cache_dir,
        description="Directory for the prefix cache on disk, which keeps blocks of long prompts "
        "that are used again, also after a restart. Prompts can be reconstructed from its files. "
        "By default blocks are cached only in memory.",
    )
    prefix_cache_disk_bytes: ByteSize | None = Field(
        None,
        description="Maximum size of the files in `prefix_cache_dir`, in bytes or with a unit such "
        "as `20GiB`. The least recently used blocks are removed. The default is 10 GiB.",
    )
    speculation: Literal["auto", "none", "ngram"] = Field(
        "auto",
        description="Speculative decoding method: `ngram` (prompt lookup) or `none`. `auto` is "
        "`ngram` on a CPU or if `num_speculative_tokens` is set, else `none`.",
    )
    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] | None = Field(
        _ENGINE.num_speculative_tokens,
        description="Maximum number of draft tokens of a sequence in one engine step. The default "
        f"is {DEFAULT_SPECULATIVE_TOKENS}.",
    )
    vllm_args: dict[str, Any] = Field(
        {},
        description="Arguments of the engine `vllm`, by the names of vLLM's `AsyncEngineArgs`: a "
        'JSON object such as `{"tensor_parallel_size": 2}`, or a table in the TOML file.',
    )

    step_timeout_s: Annotated[float, Field(gt=0)] = Field(
        _ENGINE.step_timeout_s,
        description="Maximum duration of one engine step, in seconds. A longer step counts as a "
        "hang: requests fail with ENGINE_DEAD and the process exits with code 1.",
    )
    request_timeout_s: Annotated[float, Field(gt=0)] = Field(
        600.0,
        description="Maximum duration of a request, in seconds. A longer request fails with "
        "DEADLINE_EXCEEDED, even if its own deadline is later.",
    )
    body_timeout_s: Annotated[float, Field(gt=0)] = Field(
        _CLIENT.receive_s,
        description="Maximum time to receive the message of a request, in seconds. After that, the "
        "request fails with DEADLINE_EXCEEDED.",
    )
    write_timeout_s: Annotated[float, Field(gt=0)] = Field(
        _CLIENT.write_s,
        description="Maximum time in seconds for which a client may leave a response unread. After "
        "that, the request fails with DEADLINE_EXCEEDED.",
    )
    drain_delay_s: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Time in seconds after SIGTERM during which the service reports NOT_SERVING "
        "and still accepts requests, so that routers can react.",
    )
    drain_timeout_s: Annotated[float, Field(ge=0)] = Field(
        30.0,
        description="Maximum time in seconds, after the drain delay, for running requests to "
        "finish. Those that remain are aborted.",
    )

    upstream_url: list[Annotated[str, AfterValidator(api_url)]] = Field(
        [],
        description="URLs of OpenAI-compatible services that serve the model, for `engine=openai`, "
        "separated by commas. `/v1` is added to a URL without a path.",
    )
    upstream_model: str | None = Field(
        None,
        description="The upstreams' id of the model. The default is `model` if it is set, and "
        "otherwise the only model that they serve.",
    )
    upstream_dialect: Literal["auto", "openai", "vllm", "sglang", "llamacpp", "ollama"] = Field(
        "auto",
        description="Kind of the upstreams, which decides the names of options that OpenAI's API "
        "does not have. `auto` derives it from their list of models.",
    )
    upstream_api_key_file: Path | None = Field(
        None,
        description="Path of a file with the API key for the upstreams. The file is read again "
        "when it changes.",
    )
    upstream_ca: Path | None = Field(
        None,
        description="Path of a PEM file with the certificate authority of the upstreams. By "
        "default the public authorities are trusted.",
    )
    upstream_certificate: Path | None = Field(
        None,
        description="Path of a PEM file with the service's own certificate, for upstreams that "
        "require one. It needs `upstream_key`.",
    )
    upstream_key: Path | None = Field(
        None, description="Path of a PEM file with the key of `upstream_certificate`."
    )
    upstream_connect_timeout_s: Annotated[float, Field(gt=0)] = Field(
        5.0,
        description="Maximum time to connect to an upstream, in seconds. After that, another one "
        "is tried.",
    )
    upstream_read_timeout_s: Annotated[float, Field(gt=0)] = Field(
        300.0,
        description="Maximum time without a byte of an upstream's response, in seconds. After "
        "that, another upstream is tried if there was no token yet. Otherwise the request fails "
        "with UPSTREAM_DOWN.",
    )

    @property
    def engine_settings(self) -> EngineSettings:
        """The options that the engine gets."""
        chosen = {each.name: getattr(self, each.name) for each in fields(EngineSettings)}
        if self.speculation == "none":
            chosen["num_speculative_tokens"] = 0
        elif self.speculation == "ngram" and self.num_speculative_tokens is None:
            chosen["num_speculative_tokens"] = DEFAULT_SPECULATIVE_TOKENS
        return EngineSettings(**chosen)

    @model_validator(mode="after")
    def _step_has_a_token_for_each_sequence(self) -> Self:
        num_seqs, num_tokens = self.max_num_seqs, self.max_num_batched_tokens
        if num_seqs is not None and num_tokens is not None and num_tokens < num_seqs:
            raise ValueError(
                "max_num_batched_tokens must be at least max_num_seqs, because each running "
                "sequence needs one token in each step"
            )
        return self

    @model_validator(mode="after")
    def _device_supports_the_precision(self) -> Self:
        for option in ("quantization", "kv_cache_dtype"):
            value = getattr(self, option)
            if self.device == "cuda" and value in {"int8", "int4"}:
                raise ValueError(f"{option}={value} is served on CPUs only, and device=cuda is set")
        return self

    @model_validator(mode="after")
    def _size_of_the_cache_is_set_once(self) -> Self:
        if self.gpu_memory_utilization is not None and self.kv_cache_memory_bytes is not None:
            raise ValueError(
                "gpu_memory_utilization and kv_cache_memory_bytes both set the size of the KV "
                "cache: set one of them"
            )
        return self

    @model_validator(mode="after")
    def _prefix_cache_on_disk_has_prefix_caching(self) -> Self:
        if self.prefix_cache_dir is not None and not self.prefix_caching:
            raise ValueError("prefix_cache_dir needs prefix_caching, which is turned off")
        if self.prefix_cache_disk_bytes is not None and self.prefix_cache_dir is None:
            raise ValueError("prefix_cache_disk_bytes needs prefix_cache_dir")
        return self

    @model_validator(mode="after")
    def _options_are_those_of_the_engine(self) -> Self:
        if self.engine == "openai" and not self.upstream_url:
            raise ValueError("engine=openai needs upstream_url")
        foreign = _ENGINE_FIELDS if self.engine == "openai" else _UPSTREAM_FIELDS
        if given := sorted(self.model_fields_set & foreign):
            raise ValueError(f"{given[0]} cannot be set with engine={self.engine}")
        return self

    @model_validator(mode="after")
    def _options_are_those_of_the_task(self) -> Self:
        if self.task in {"auto", "generate"}:
            return self
        if self.engine not in {"auto", "local"}:
            raise ValueError(
                f"task={self.task} needs engine=local, and engine={self.engine} is set"
            )
        if given := sorted(self.model_fields_set & GENERATION_FIELDS):
            raise ValueError(f"{given[0]} cannot be set with task={self.task}")
        return self

    @model_validator(mode="after")
    def _upstream_certificate_has_a_key(self) -> Self:
        if (self.upstream_certificate is None) != (self.upstream_key is None):
            raise ValueError("upstream_certificate and upstream_key must be given together")
        return self

    @model_validator(mode="after")
    def _channelz_has_an_admin_port(self) -> Self:
        if self.channelz and self.admin_port is None:
            raise ValueError("channelz needs admin_port")
        return self
