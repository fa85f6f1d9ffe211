"""The interface of an engine, which generates token ids from token ids."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from service.domain.engine_settings import EngineModel, EngineSettings
from service.domain.grammar import OutputConstraint
from service.domain.sampling import SamplingParams


class FinishReason(Enum):
    """The reason why a sequence ended."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"  # set by the output parser; an engine has no tool calls
    CONTENT_FILTER = "content_filter"  # only remote backends filter outputs


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of a request, for scheduling and caching.

    Requests of one caller are served in order; different callers take turns.

    Attributes:
        name: Identifies the caller. It is empty for all requests without an identity: they share
            one queue.
        weight: Number of turns that the caller gets in a round; at least 1.
        cache_namespace: Only callers with an equal namespace share cached prompt prefixes.
        min_priority: The lowest (most urgent) `priority` that the caller's requests may set.
    """

    name: str = ""
    weight: int = 1
    cache_namespace: str = ""
    min_priority: int = -(2**31)

    @property
    def default_priority(self) -> int:
        """The priority of requests that set none: 0, or `min_priority` if that is higher."""
        return max(0, self.min_priority)


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """The progress of one request in the engine, all its sequences together.

    Times are in seconds of `time.monotonic()`. A time is None if the event has not happened yet.

    Attributes:
        queued_s: Time when the request was admitted.
        scheduled_s: Time when the first step with one of its sequences began.
        first_token_s: Time when its first token was generated.
        last_token_s: Time when its last token so far was generated.
        num_tokens: Number of tokens generated so far.
    """

    queued_s: float | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A request to an engine.

    The options take effect in vLLM's order: allowed tokens, bad sequences, the constraint and
    `min_tokens`, then bias, penalties, temperature, min-p, top-k and top-p. Log probabilities are
    those of the model, before any option.

    Attributes:
        sampling: Sampling parameters. `max_tokens` may be None or too large. The engine limits it
            to the rest of the context after the prompt.
        stop_token_ids: Ids of all tokens that end a sequence, including the model's own end tokens.
        deadline: Time in seconds of `time.monotonic()`. If the request is still waiting at that
            time, it fails.
        cache_salt: Only requests with an equal salt share cached prompt prefixes.
        n: Number of sequences. Sequence `i` is sampled by the seed and `i`.
        priority: Among the requests of a caller, those with a lower value are admitted first, and
            preempted last if `EngineCapabilities.preempts_by_priority`. An engine may choose the
            next request before there is room for it.
        num_logprobs: Number of most likely tokens whose log probabilities are returned, in addition
            to that of each generated token. If it is None, no log probabilities are returned.
        num_prompt_logprobs: The same for the prompt.
        bad_token_sequences: Token sequences that are never generated. None of them is empty.
        constraint: The grammar of the output; None if there is none.
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
    constraint: OutputConstraint | None = None
    caller: Caller = Caller()


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probability of a token (natural, before temperature) and of the most likely tokens.

    `top` is in descending order. Equally likely tokens in it are in ascending order of their ids.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class _WithAlternatives(Protocol):
    """A log probability with its likeliest alternatives."""

    @property
    def top(self) -> Sequence[Any]: ...


def count_logprobs(*groups: Sequence[_WithAlternatives]) -> int:
    """Return the number of log probabilities in all groups together, including the alternatives.

    Every entry of a group is counted as if it had as many alternatives as the last one.
    """
    return sum(len(group) * (1 + len(group[-1].top)) for group in groups if group)


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The next tokens of one sequence of a request.

    Attributes:
        finish_reason: The reason why the sequence ended; None if it has not ended. With STOP, the
            last of `token_ids` is a stop token, or there is no token because none was allowed.
        num_cached_tokens: Number of tokens of the prompt that came from the prefix cache. Set in
            every output with a token.
        index: Index of the sequence.
        logprobs: Log probabilities of `token_ids`, if requested.
        prompt_logprobs: Log probabilities of all tokens of the prompt except the first, if
            requested. Only the first output of sequence 0 has them.
        timings: Progress of the request. It never goes back from one output to the next.
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
        """Return this output and the one after it as one output."""
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
class DiskCacheStats:
    """The use of the prefix cache on disk, counted since the start of the engine."""

    num_bytes: int = 0  # size of the files now
    num_queries: int = 0  # prompt tokens that were not in memory, and were looked up on disk
    num_hits: int = 0  # prompt tokens that were loaded from disk
    num_read_bytes: int = 0
    num_written_bytes: int = 0
    num_evictions: int = 0  # blocks that were removed to make room
    num_errors: int = 0  # failed reads and writes, damaged files


@dataclass(frozen=True, slots=True)
class UpstreamStats:
    """The use of one remote service, counted since the start. Probes are not counted.

    Attributes:
        name: Its host and port.
        num_attempts: Attempts to send it a request.
        num_failed: Attempts that failed because of it. A request that it rejected, or that was
            cancelled, has not failed.
        num_failovers: Failed attempts after which the request was sent to another upstream.
        is_up: True if its last request or probe did not fail.
    """

    name: str
    num_attempts: int = 0
    num_failed: int = 0
    num_failovers: int = 0
    is_up: bool = True


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's load, as of its last step."""

    max_num_seqs: int = 0  # maximum number of sequences that run at once
    num_running: int = 0
    num_waiting: int = 0
    num_kv_blocks: int = 0
    kv_block_size: int = 0  # tokens in a block
    num_free_kv_blocks: int = 0  # blocks that no sequence uses; they may be cached
    # The fields below are counted since the start of the engine.
    num_preemptions: int = 0
    num_steps: int = 0
    num_failed_steps: int = 0
    step_s: float = 0.0  # duration of all steps that did not fail
    predicted_step_s: float = 0.0  # their predicted duration
    num_prefix_cache_queries: int = 0  # prompt tokens looked up in the prefix cache
    num_prefix_cache_hits: int = 0  # prompt tokens that were found in it, in memory or on disk
    disk_cache: DiskCacheStats = DiskCacheStats()
    num_draft_tokens: int = 0  # draft tokens proposed
    num_accepted_tokens: int = 0  # draft tokens accepted
    upstreams: tuple[UpstreamStats, ...] = ()  # of a backend over remote services


@dataclass(frozen=True, slots=True)
class EngineCapabilities:
    """The fields of requests that an engine serves, and its guarantees.

    Attributes:
        name: The engine's name for clients and logs, such as `local`.
        unsupported: Names of the fields of `Request` and `SamplingParams` that the engine does not
            serve. A request that sets one of them is rejected before it reaches the engine.
        max_logprobs: Maximum value of `num_logprobs` and `num_prompt_logprobs`; None means the size
            of the vocabulary.
        is_batch_invariant: True if a request with a seed, or a greedy one, gets the same tokens and
            log probabilities in every batch.
        continues_constraints: True if `Request.constraint` may be the rest of a grammar, after the
            text in `OutputConstraint.begun`.
        masks_logprobs: True if the log probabilities of an output with a constraint are those among
            the tokens that the constraint allows.
        preempts_by_priority: True if `Request.priority` decides which sequence is preempted.
        reads_gguf: True if the engine reads a GGUF file that `EngineModel.path` has a link to. It
            does not depend on the model.
        quantization: The precision of the weights in computations, such as `bfloat16` or `int8`, or
            the method of a quantized checkpoint, such as `awq`. Empty if it is unknown.
    """

    name: str
    unsupported: frozenset[str] = frozenset()
    max_logprobs: int | None = None
    is_batch_invariant: bool = False
    continues_constraints: bool = True
    masks_logprobs: bool = False
    preempts_by_priority: bool = True
    reads_gguf: bool = False
    quantization: str = ""


@runtime_checkable
class Engine(Protocol):
    """Generates token ids from token ids. Text, templates and stop strings are handled outside."""

    @property
    def capabilities(self) -> EngineCapabilities:
        """The engine's capabilities. They can depend on the model, and are final after `start`."""
        ...

    @property
    def max_model_len(self) -> int:
        """Maximum number of tokens of a sequence, prompt and output together; set by `start`."""
        ...

    async def start(self, model: EngineModel) -> None:
        """Load the model and prepare to generate. This must not block the event loop.

        Raises:
            ModelLoadError: The model cannot be served.
        """
        ...

    @property
    def max_request_sequences(self) -> int:
        """Maximum number of sequences of one request, for all its prompts together; set by
        `start`."""
        ...

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """Reserve queue capacity, while in the context, for a request that is being prepared.

        A request without capacity is rejected before any work is done on it. Requests that are
        being prepared count as waiting.

        Raises:
            QueueFull: The queue is full, or the caller has used its share of it.
            EngineDead: The engine has failed or is stopped.
        """
        ...

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """Generate the sequences of one request.

        The first item has no token: the request has been admitted. When the first step with one of
        its sequences begins, another item without a token follows, unless its first token comes
        before the consumer asks for the item. Every later item has at least one token or the finish
        reason of one sequence, several tokens if the consumer is slow. Every item has `timings`.

        Sending the index of a sequence ends that sequence, and no more items of it follow. Closing
        the generator aborts the request and frees its resources.

        Args:
            is_reserved: True if `reserve` has reserved capacity for the request. Otherwise this
                method reserves it.

        Raises, at the first item:
            ContextLengthExceeded, QueueFull, DeadlinePassed: The request is rejected.
            EngineDead: The engine has failed or is stopped.
        Raises, later:
            DeadlinePassed: The deadline passed while a sequence was waiting.
            StepFailed: A step with this request failed. Requests outside the step are not affected.
            EngineDead: The engine has failed or is stopped.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the engine's load and counters.

        Soon after all requests have ended, no sequence runs or waits, and no block is in use.
        """
        ...

    async def wait_dead(self) -> None:
        """Return when the engine has failed. Never return otherwise, even after `stop`."""
        ...

    async def stop(self) -> bool:
        """Fail the unfinished requests and all later ones with EngineDead, and free the model.

        Returns:
            False if the engine has failed before; True otherwise.
        """
        ...


class EngineFactory(Protocol):
    """Makes an engine. `--engine` names it by an import string, such as `package.module:Class`."""

    def __call__(self, settings: EngineSettings, /) -> Engine:
        """Return an engine that has not been started.

        This is called on the event loop's thread, before the model's files are available. It must
        return at once. Work that takes long belongs in `Engine.start`.
        """
        ...
