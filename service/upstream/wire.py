"""The responses of upstreams, as far as they are read.

Fields that are not listed here are dropped. A listed field of another type makes the response
invalid. Most fields are absent in some service's responses, or null, so all have a default.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Struct

from service.errors import UpstreamInvalidResponse

_Response = TypeVar("_Response")

# The protos have such integers for counts, indices and token ids.
Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
# The largest finite float of 32 bits. The protos would turn a larger number into infinity.
Float32 = Annotated[float, msgspec.Meta(ge=-3.4028234663852886e38, le=3.4028234663852886e38)]


class PromptDetails(Struct, frozen=True):
    """Details about the tokens of the prompt."""

    cached_tokens: Count | None = None


class OutputDetails(Struct, frozen=True):
    """Details about the generated tokens."""

    reasoning_tokens: Count | None = None


class Usage(Struct, frozen=True):
    """Numbers of tokens. SGLang has `reasoning_tokens` outside of the details."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: OutputDetails | None = None
    reasoning_tokens: Count | None = None


class FunctionPiece(Struct, frozen=True):
    """The function of a tool call, or the next piece of its arguments."""

    name: str | None = None
    arguments: Any = None  # a text; some services send the object


class ToolCallPiece(Struct, frozen=True):
    """A tool call, or the next piece of one."""

    index: Count | None = None
    id: str | None = None
    function: FunctionPiece | None = None


class Delta(Struct, frozen=True):
    """A message, or the next piece of one. Reasoning has two names."""

    content: str | list[Any] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class TokenLogprob(Struct, frozen=True):
    """The log probability of a token, in the form of chats."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    id: Count | None = None  # llama.cpp
    top_logprobs: "list[TokenLogprob] | None" = None


class Logprobs(Struct, frozen=True):
    """Log probabilities in the form of chats, or in the form of text completions."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    text_offset: list[Count] | None = None


class PromptLogprob(Struct, frozen=True):
    """The log probability of a prompt token, as vLLM returns it."""

    logprob: float | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class Choice(Struct, frozen=True):
    """A choice, or the next piece of one.

    Attributes:
        stop_reason: The stop string or stop token that ended the choice, in vLLM.
        matched_stop: The same in SGLang. It may be an end-of-sequence token.
    """

    index: Count = 0
    delta: Delta | None = None
    message: Delta | None = None
    text: str | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    matched_stop: int | str | None = None
    token_ids: list[Count] | None = None
    prompt_token_ids: list[Count] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Struct, frozen=True):
    """A chat or text completion, or a chunk of one. A chunk may be an error instead."""

    model: str | None = None
    choices: list[Choice] | None = None
    usage: Usage | None = None
    prompt_token_ids: list[Count] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    error: Any = None


class Meta(Struct, frozen=True):
    """Properties of a model, in llama.cpp."""

    n_ctx: int | None = None
    n_ctx_train: int | None = None


class Model(Struct, frozen=True):
    """An entry of the list of models. The length of the context has several names."""

    id: str
    owned_by: str | None = None
    created: int | None = None
    root: str | None = None
    max_model_len: int | None = None
    context_length: int | None = None
    context_window: int | None = None
    max_context_length: int | None = None
    max_output_tokens: int | None = None
    max_completion_tokens: int | None = None
    quantization: Any = None  # a text; some services send an object
    meta: Meta | None = None

    @property
    def output_length(self) -> int | None:
        """Maximum number of tokens of an output; None if it is unknown."""
        names = self.max_output_tokens, self.max_completion_tokens
        return next((length for length in names if length is not None and length > 0), None)

    @property
    def length(self) -> int | None:
        """Maximum number of tokens of a sequence; None if it is unknown."""
        meta = self.meta or Meta()
        names = (
            *(self.max_model_len, self.context_length, self.context_window),
            *(self.max_context_length, meta.n_ctx, meta.n_ctx_train),
        )
        return next((length for length in names if length is not None and length > 1), None)


class ModelList(Struct, frozen=True):
    """The list of models."""

    data: list[Model]


class EmbeddingItem(Struct, frozen=True):
    """The embedding of an input: as base64 of floats of 32 bits, or as a list of numbers."""

    embedding: str | list[Float32]
    index: Count = 0


class EmbeddingList(Struct, frozen=True):
    """The embeddings of all inputs."""

    data: list[EmbeddingItem]
    usage: Usage | None = None


class Tokens(Struct, frozen=True):
    """The token ids of a text, in vLLM."""

    tokens: list[Count]


class DetokenizedText(Struct, frozen=True):
    """The text of token ids, in vLLM."""

    prompt: str


class ServerVersion(Struct, frozen=True):
    """The version of a server, in vLLM."""

    version: str


class _Slot(Struct, frozen=True):
    n_ctx: int | None = None


class Props(Struct, frozen=True):
    """The properties of a llama.cpp server. The context is shared by its slots."""

    default_generation_settings: _Slot


def decoded(content: bytes | str, kind: type[_Response]) -> _Response:
    """Return a response as a `kind`.

    Raises:
        UpstreamInvalidResponse: It is not JSON, or a field has another type.
    """
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UpstreamInvalidResponse(
            "The response of the upstream service does not follow OpenAI's API."
        ) from error
