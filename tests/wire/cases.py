"""Recorded requests and the setup that each needs, as values without imports of our packages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["serving", "starting", "draining", "unreachable"]
Failure = Literal[
    "queue_full",
    "queue_share",
    "engine_dead",
    "deadline",
    "step_failed",
    "constraint_failed",
    "unforeseen",
]

SECRET = "sk-chatrpc-wire"  # noqa: S105  # the key of a setup with `has_keys`


@dataclass(frozen=True)
class Setup:
    """The service and the engine for one request. Each request gets new ones.

    Attributes:
        outputs: The generated texts. Sequence `i` of a request, over all its prompts, generates
            `outputs[i % len(outputs)]`, one token for each byte, and then the end-of-turn token.
            The request's `max_tokens` and stop tokens end a sequence earlier.
        tokens_per_step: The number of tokens in one output of the engine.
        num_cached_tokens: The number of prompt tokens that come from the prefix cache.
        rejection: The engine rejects the request with this error.
        failure: The engine fails with this error after `fails_after` steps.
        state: The state of the service. If it is "unreachable", nothing listens on its port.
        tools: The tool format of the model, a value of `ToolFormat`.
        reasoning: The reasoning format of the model, a value of `ReasoningFormat`.
        has_grammars: True if the model supports grammars.
        has_embeddings: True if the model has embeddings.
        unsupported: The fields that the engine does not serve.
        has_keys: True if the service and the gateway require the API key `SECRET`, which may use
            only the model `fake`.
        key_limits: Further lines of the key's entry in the file of keys, which is TOML.
        gateway: Options of the gateway.
    """

    outputs: tuple[str, ...] = ("Hello, world!",)
    tokens_per_step: int = 4
    num_cached_tokens: int = 0
    rejection: Failure | None = None
    failure: Failure | None = None
    fails_after: int = 0
    state: State = "serving"
    tools: str = "hermes"
    reasoning: str = "none"
    has_grammars: bool = True
    has_embeddings: bool = False
    unsupported: tuple[str, ...] = ()
    has_keys: bool = False
    key_limits: tuple[str, ...] = ()
    gateway: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HttpRequest:
    """A request to the gateway. `name` is the name of its recording.

    Its body is `content`, or `json` as compact JSON, or nothing.
    """

    name: str
    method: str
    path: str
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    setup: Setup = Setup()


@dataclass(frozen=True)
class GrpcCall:
    """A call of the service. `name` is the name of its recording.

    `method` is `package.Service/Method`. `message` is the request as protobuf's JSON; bytes are
    sent as they are.
    """

    name: str
    method: str
    message: Mapping[str, Any] | bytes = field(default_factory=dict)
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    setup: Setup = Setup()
