"""The backends of a model: the chat backend turns checked requests into text deltas, and others
compute embeddings, the scores of labels, and the scores of pairs of texts.

The servicers use a model only through these interfaces. The local backend (`service.generation`) is
one implementation, over an `Engine`. Another one could call a remote server. It would have no
engine, and perhaps neither a tokenizer nor token ids.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from service.domain.chat import ChatRequest, Message, PromptOptions, Tool
from service.domain.completion import CompletionRequest
from service.domain.decisions import DecisionRequest, NoteProgress, ScoredQuestion
from service.domain.embeddings import EmbeddingRequest, Embeddings
from service.domain.engine import (
    Caller,
    EngineStats,
    EngineTimings,
    FinishReason,
    count_logprobs,
)
from service.domain.model import LocalModel, ModelCard, Tokenizer
from service.domain.pooling import (
    ClassificationRequest,
    Classifications,
    ScoreRequest,
    Scores,
    Task,
)
from service.domain.sampling import SamplingParams

GenerationRequest: TypeAlias = ChatRequest | CompletionRequest

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The properties of a model that are needed to check requests, and that clients receive.

    Attributes:
        max_model_len: Maximum number of tokens of a sequence, prompt and output together.
        max_sequences: Maximum number of sequences of one request, for all its prompts together.
        sampling_defaults: The values of sampling parameters that a request does not set.
        vocab_size: Number of token ids of the model; None if the backend has no token ids.
        max_token_chars: Maximum number of characters that one token stands for; None if unknown.
        takes_images: True if messages may have images.
        unsupported_fields: The fields that requests may not set: paths in the parameters of an RPC,
            such as `sampling.top_k`. A request that sets one is rejected before `prepare`.
        max_logprobs: Maximum number of alternatives to a token's log probability; None if the model
            has no limit of its own.
        is_batch_invariant: True if the output of a request does not depend on other requests.
        has_reasoning: True if the model reasons, and its reasoning is separated from the content;
            None if it is unknown.
    """

    max_model_len: int
    max_sequences: int
    sampling_defaults: SamplingParams
    vocab_size: int | None = None
    max_token_chars: int | None = None
    takes_images: bool = False
    unsupported_fields: frozenset[str] = frozenset()
    max_logprobs: int | None = None
    is_batch_invariant: bool = False
    has_reasoning: bool | None = None

    def most_logprobs(self, limit: int) -> int:
        """Return `max_logprobs`, or `limit` if that is lower."""
        return limit if self.max_logprobs is None else min(limit, self.max_logprobs)


class Workers(Protocol):
    """Threads for work that would block the event loop, shared fairly by callers.

    Both methods return `function(*arguments)`.

    Raises:
        PreparationFull: Too many jobs are waiting, or the caller has used its share of them.
    """

    async def text(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run work on a request's text or on an output."""
        ...

    async def grammar(
        self, length: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Compile a grammar that is described by `length` characters."""
        ...


@dataclass(frozen=True, slots=True)
class CallContext:
    """The call that a request belongs to.

    Attributes:
        deadline: Time by which the request must be complete, in seconds of `time.monotonic()`.
        priority: Among the caller's requests, those with a lower value are admitted first.
    """

    caller: Caller
    deadline: float
    priority: int
    workers: Workers


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt of a request, after tokenization.

    Attributes:
        text: The prompt's text, for text completions.
        token_ids: The prompt's token ids; empty if the backend has no token ids.
        num_tokens: Number of tokens; None if the backend reports it only at the end, or never.
        text_offsets: Offset in `text` of each token, for text completions that return offsets.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    num_tokens: int | None = None
    text_offsets: tuple[int, ...] = ()


class DecodedLogprob(NamedTuple):
    """The log probability of a token (natural, before temperature), with the token's bytes.

    `logprob` is None for the first token of a prompt. `token_id` is None if the backend has no
    token ids. `top` has the most likely tokens, in descending order.
    """

    token: bytes
    logprob: float | None
    token_id: int | None = None
    top: "tuple[DecodedLogprob, ...]" = ()


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next piece of a tool call. Only the first piece has the id and the name."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class TokenUsage(NamedTuple):
    """The numbers of tokens of a request, all its prompts and choices together."""

    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_cached_tokens: int = 0
    num_reasoning_tokens: int = 0


# One is made for each token. It is not frozen, because that would take several times as long.
@dataclass(slots=True)
class TextDelta:
    """The next piece of a choice.

    Attributes:
        text: The next piece of the content.
        num_tokens: Number of tokens generated since the last delta of the choice. Their text may
            come with a later delta.
        finish_reason: The reason why the choice ended; None except in the choice's last delta.
        matched_stop: The request's stop string or stop token that ended the choice, if any.
        num_cached_tokens: Number of tokens of the prompt that came from the prefix cache.
        index: Index of the choice among those of its prompt.
        token_ids: Ids of the `num_tokens` tokens.
        logprobs: Log probabilities. In a chat, of the tokens whose text begins in this delta. A
            token that ended the choice has none, nor do the tokens of a stop string that is
            removed. In a text completion, of the `num_tokens` tokens.
        prompt_logprobs: Log probabilities of all tokens of the prompt. Only one delta has them.
        reasoning: The next piece of the reasoning, which comes before the content.
        num_reasoning_tokens: Number of reasoning tokens of the choice so far.
        tool_calls: Pieces of tool calls.
        prompt_index: Index of the prompt in the request.
        text_offsets: Offset in the choice's text of each of the `num_tokens` tokens.
        timings: Progress of the prompt's request; None if the backend does not report it.
        prompt_token_ids: Ids of the prompt's tokens, if its `Prompt` does not have them. The first
            delta of each choice has them.
        usage: The numbers of tokens so far, if a remote backend reports them. They replace the sums
            over the deltas.
    """

    text: str = ""
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    matched_stop: str | int | None = None
    num_cached_tokens: int = 0
    index: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[DecodedLogprob, ...] = ()
    prompt_logprobs: tuple[DecodedLogprob, ...] = ()
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt_index: int = 0
    text_offsets: tuple[int, ...] = ()
    timings: EngineTimings | None = field(default=None, compare=False)
    prompt_token_ids: tuple[int, ...] = ()
    usage: TokenUsage | None = None

    @property
    def num_logprobs(self) -> int:
        """Number of log probabilities in the delta. See `count_logprobs`."""
        if not (self.logprobs or self.prompt_logprobs):
            return 0
        return count_logprobs(self.logprobs, self.prompt_logprobs)


class Generation(Protocol):
    """A request that is ready to run."""

    @property
    def prompts(self) -> Sequence[Prompt]: ...

    def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Run the request. Yield the deltas of all choices, until each has a finish reason.

        The first item is empty: the request has been admitted. Closing the generator aborts the
        request.

        Raises, at the first item, or a remote backend before the second:
            ContextLengthExceeded, QueueFull, DeadlinePassed: The request is rejected.
            InvalidField: A remote backend rejects a field.
        Raises, later:
            DeadlinePassed: The deadline passed.
            InvalidField: The grammar cannot be followed to the end of an output.
            StepFailed: The request failed; others are not affected.
            EngineDead: The backend has failed.
            UpstreamError: A remote backend has failed.
        """
        ...


class BackendLoad(NamedTuple):
    """The number of sequences in a backend, running or waiting, and the maximum of running ones."""

    num_sequences: int
    max_running: int


class ModelBackend(Protocol):
    """The tokenizer, the limits and the load of a model with any task."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None if the backend has none."""
        ...

    def load(self) -> BackendLoad: ...

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """Reserve capacity for a request while it is prepared and run.

        Raises:
            QueueFull: There is no capacity, or the caller has used its share of it.
            EngineDead: The backend has failed.
        """
        ...


class ChatBackend(ModelBackend, Protocol):
    """Generates text for chat and text completion requests."""

    async def prepare(self, request: GenerationRequest, call: CallContext) -> Generation:
        """Check and prepare a request, without running it.

        Raises:
            InvalidField or a subclass: The request cannot be served.
            DeadlinePassed: The deadline passed.
            PreparationFull: Too many requests are being prepared.
        """
        ...


class EmbeddingBackend(Protocol):
    """Computes embeddings."""

    @property
    def unsupported_fields(self) -> frozenset[str]:
        """The fields of `CreateEmbeddingsRequest` that are rejected."""
        ...

    @property
    def num_dimensions(self) -> int | None:
        """Number of dimensions of the model's embeddings; None if it is unknown."""
        ...

    @property
    def prompt_names(self) -> Sequence[str]:
        """The names of the model's prompts, in alphabetical order."""
        ...

    async def embed(self, request: EmbeddingRequest, call: CallContext) -> Embeddings:
        """Return the embeddings of all inputs. Cancelling the task aborts the request.

        The servicer has reserved capacity for one sequence (`ModelBackend.reserve`). It ends the
        call at its deadline, so this method need not observe `call.deadline`.

        Raises:
            InvalidField or a subclass: The request cannot be served.
            QueueFull, DeadlinePassed: The request is rejected.
            StepFailed: The request failed; others are not affected.
            EngineDead: The backend has failed.
        """
        ...


class ClassificationBackend(Protocol):
    """Computes the scores of labels. The promises and errors are those of `EmbeddingBackend`."""

    @property
    def labels(self) -> Sequence[str]:
        """The names of the labels, in the order of scores."""
        ...

    async def classify(
        self, request: ClassificationRequest, call: CallContext
    ) -> Classifications: ...


class ScoreBackend(Protocol):
    """Computes scores of pairs. The promises and errors are those of `EmbeddingBackend`."""

    @property
    def has_activation(self) -> bool:
        """False if requests may not choose an activation."""
        ...

    async def score(self, request: ScoreRequest, call: CallContext) -> Scores: ...


class DecisionBackend(Protocol):
    """Computes the probabilities of the options of questions."""

    async def decide(
        self, request: DecisionRequest, call: CallContext, num_sequences: int, note: NoteProgress
    ) -> Sequence[ScoredQuestion]:
        """Return the scored questions, in their order. Cancelling the task aborts the request.

        The servicer ends the call at its deadline, so this method need not observe `call.deadline`.

        Args:
            num_sequences: Number of sequences for which the servicer has reserved capacity
                (`ModelBackend.reserve`). At most this many run at a time.
            note: Called with the progress of each question.

        Raises:
            InvalidField or a subclass: The request cannot be served.
            QueueFull, DeadlinePassed, PreparationFull: The request is rejected.
            StepFailed: The request failed; others are not affected.
            EngineDead: The backend has failed.
        """
        ...


class RemoteTokenizer(Protocol):
    """The tokenizer of a remote service, for a backend that has none of its own.

    All methods raise InvalidField, UnsupportedMethod, Unavailable or UpstreamError.
    """

    async def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    async def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool], options: PromptOptions
    ) -> Sequence[int]: ...

    async def decode(self, token_ids: Sequence[int]) -> str: ...


EncodeChat = Callable[[Sequence[Message], Sequence[Tool], PromptOptions], Sequence[int]]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that requests can name, and the backends that serve it.

    Attributes:
        backend: The limits and the tokenizer of the model.
        chat: Generates text; None if the model does not generate.
        embeddings: Computes the model's embeddings; None if it has none.
        classifier: Computes the scores of labels; None if the model is no classifier.
        scorer: Computes the scores of pairs of texts; None if the model scores none.
        remote_tokenizer: Tokenizes if `backend.tokenizer` is None; None if nothing does.
        local: The model, if it is in this process.
        encode_chat: Returns the token ids of the prompt of a conversation with tools; None if the
            backend renders no prompts itself.
        decisions: Scores the options of questions; None if the model's log probabilities of given
            tokens cannot be read.
    """

    card: ModelCard
    backend: ModelBackend
    chat: ChatBackend | None = None
    embeddings: EmbeddingBackend | None = None
    classifier: ClassificationBackend | None = None
    scorer: ScoreBackend | None = None
    remote_tokenizer: RemoteTokenizer | None = None
    local: LocalModel | None = None
    encode_chat: EncodeChat | None = None
    decisions: DecisionBackend | None = None

    @property
    def tasks(self) -> Sequence[Task]:
        """The tasks of the model."""
        served = (self.chat, self.embeddings, self.classifier, self.scorer)
        return [task for task, backend in zip(Task, served, strict=True) if backend is not None]


class ModelRuntime(Protocol):
    """Loads the model that the process serves, and reports its load and its failure."""

    async def load(self) -> ServedModel:
        """Load the model. This can take minutes. It must not block the event loop.

        Raises:
            ModelLoadError: The model cannot be served.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the load of the backend; empty before `load`."""
        ...

    async def wait_available(self, *, is_available: bool) -> None:
        """Return when the model can serve requests, or if `is_available` is False, when it cannot.

        A backend that is not available may become so again. It is available after `load`.
        """
        ...

    async def wait_dead(self) -> None:
        """Return when the backend has failed. Never return otherwise, even after `stop`."""
        ...

    async def stop(self) -> bool:
        """Fail the unfinished requests and free the model.

        Returns:
            False if the backend has failed before; True otherwise.
        """
        ...
