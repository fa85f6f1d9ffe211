"""The engine: token ids in, token ids out."""

from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, runtime_checkable

from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.grammar import Constraint
from service.domain.sampling import SamplingParams


class FinishReason(Enum):
    """Why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"  # of an answer; an engine knows nothing of calls


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, as scheduling and caching know it.

    Requests of one caller wait behind one another; different callers take turns.

    Attributes:
        name: Identifies the caller. Empty for requests without an identity, which share one queue.
        weight: Number of turns that the caller gets in a round; at least 1.
        cache_namespace: Only callers with an equal namespace share cached prompt prefixes.
        min_priority: The lowest value, so the most urgent one, that its requests may set as
            `priority`.
    """

    name: str = ""
    weight: int = 1
    cache_namespace: str = ""
    min_priority: int = -(2**31)


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """The progress of one request in the engine, all its sequences together.

    Times are of `time.monotonic()`, in seconds. None: the request has not come so far.

    Attributes:
        queued_s: When the request was admitted.
        scheduled_s: When the first step with one of its sequences began.
        first_token_s: When its first token was generated.
        last_token_s: When its last token so far was generated.
        num_tokens: Number of tokens generated so far.
    """

    queued_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What an engine is asked: token ids in.

    `sampling.max_tokens` may be None or too large: the engine clamps it to what the context leaves.
    `stop_token_ids` holds every token that ends the sequence, the model's own included.
    `deadline` is a time of `time.monotonic()`, in seconds; a request still waiting then is dropped.
    What is cached of a prompt is shared among requests with an equal `cache_salt` alone.
    `n` sequences are generated from one computation of the prompt, that of index `i` with draws of
    its own, by the seed and `i`. Requests with a lower `priority` are admitted first and preempted
    last.
    `num_logprobs` and `num_prompt_logprobs`: how many of the likeliest tokens to tell at each place
    beside the one that stands there; None: no log probabilities at all.
    `bad_token_sequences`, none of them empty, are never generated. `constraint` is the grammar of
    the output.

    What may come and how likely it is goes by vLLM's order: allowed tokens, bad sequences, the
    constraint and `min_tokens`, then bias, penalties, temperature, min-p, top-k and top-p. Log
    probabilities are those of the model itself, before any of it.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop_token_ids: frozenset[int] = frozenset()
    deadline: float | None = None
    cache_salt: str = ""
    n: int = 1
    priority: int = 0
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    bad_token_sequences: tuple[tuple[int, ...], ...] = ()
    constraint: Constraint | None = None
    caller: Caller = Caller()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token's log probability (natural, before temperature), and its likeliest rivals'.

    `top` is in falling order, the lower token id first among equals.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """What an engine answers: the next token ids of a sequence, and why it ended if it did.

    Where `finish_reason` is STOP the last of `token_ids` is a stop token, or there are none: then
    nothing was left that may come.

    `index` says which of the request's `n` sequences. `num_cached_tokens` of the prompt came from
    the prefix cache; every output with a token says so. `logprobs` has one for each of `token_ids`
    where they were asked for; `prompt_logprobs`, one for each token of the prompt but the first,
    comes with the first output of sequence 0. `timings` are those of the request at this output.
    """

    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    num_cached_tokens: int = 0
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    timings: EngineTimings | None = field(default=None, compare=False)

    @property
    def is_progress(self) -> bool:
        """True if the output has nothing but `timings`."""
        return not self.token_ids and self.finish_reason is None

    def merged_with(self, later: "TokenOutput") -> "TokenOutput":
        """This output and the one that follows it, as one."""
        return TokenOutput(
            self.token_ids + later.token_ids,
            later.finish_reason,
            later.num_cached_tokens,
            self.index,
            self.logprobs + later.logprobs,
            self.prompt_logprobs,
            later.timings,
        )


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's load, as of its last step."""

    max_num_seqs: int = 0  # the most that run at once
    num_running: int = 0
    num_waiting: int = 0
    num_kv_blocks: int = 0
    kv_block_size: int = 0  # tokens in a block
    num_free_kv_blocks: int = 0  # held by no sequence, whether they are cached or not
    # Since start:
    num_preemptions: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    num_prefix_cache_queries: int = 0  # tokens of prompts that were looked for in the cache
    num_prefix_cache_hits: int = 0  # those of them that were found
    num_draft_tokens: int = 0  # guessed for the model to check
    num_accepted_tokens: int = 0  # those of them that were right


@runtime_checkable
class Engine(Protocol):
    """Generates token ids from token ids. Text, templates and stop strings are not its concern."""

    @property
    def max_model_len(self) -> int:
        """The longest sequence served, prompt and answer together, in tokens. Known after start."""
        ...

    async def start(self, model: EngineModel) -> None:
        """Load the model and get ready to generate. The event loop must not be blocked meanwhile.

        Raises:
            ModelLoadError: the model cannot be served.
        """
        ...

    @property
    def max_request_sequences(self) -> int:
        """The most sequences that one request can have, all its prompts together."""
        ...

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """Hold places in the queue, while in the context, for a request that is being prepared.

        So a request that has no room is refused before any work is done on it, and requests that
        are being prepared count like those that wait.

        Raises:
            QueueFull: The queue is full, or the caller has its share of it.
            EngineDead: The engine has failed.
        """
        ...

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """Run the sequences of one request to their ends.

        `is_reserved` says that a reservation is held for them; otherwise they take places here.

        The first item has no token: the request has been admitted. When the first step with one of
        its sequences begins, another item without a token follows, unless its first token comes
        before the consumer asks for the item. Every later item has at least one token or the finish
        reason of one sequence, several tokens if the consumer is slow. Every item has `timings`.

        Sending the index of a sequence ends that sequence, and no more items of it follow. Closing
        the generator aborts the request and frees what it held.

        Raises, at the first item:
            ContextLengthExceeded, QueueFull, DeadlinePassed: the request is refused.
        Raises, later:
            DeadlinePassed: the deadline passed while a sequence waited for its turn.
            StepFailed: the engine has failed over this request, and goes on without it.
            EngineDead: the engine has failed.
        """
        ...

    def stats(self) -> EngineStats: ...

    async def wait_dead(self) -> None:
        """Return when the engine has failed. Never returns for one that is well or was stopped."""
        ...

    async def stop(self) -> bool:
        """Fail what still runs and free the model; whether the engine was well to the end."""
        ...


class EngineFactory(Protocol):
    """Makes an engine. `--engine` names it by an import string, such as `package.module:Class`."""

    def __call__(self, settings: EngineSettings, /) -> Engine:
        """Return an engine that has not been started.

        This is called on the event loop's thread before the model's files are there, so it returns
        at once. Whatever takes long belongs into `Engine.start`.
        """
        ...
