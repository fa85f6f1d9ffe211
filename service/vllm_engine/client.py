"""The part of vLLM that the engine uses, as a protocol. `launch.py` implements it over `AsyncLLM`.

Nothing here imports vLLM. The types of outputs and statistics have the names of vLLM's attributes.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias


class Logprob(Protocol):
    """The log probability of a token (natural), and its rank among all tokens, from 1 on."""

    @property
    def logprob(self) -> float: ...
    @property
    def rank(self) -> int | None: ...


# The log probabilities of one position by token id: those of the token there and of the likeliest.
PositionLogprobs: TypeAlias = Mapping[int, Logprob]


class Completion(Protocol):
    """The new tokens of a request. `finish_reason` is None if the request has not ended."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[PositionLogprobs] | None: ...
    @property
    def finish_reason(self) -> str | None: ...


class RequestStats(Protocol):
    """Times of a request in vLLM's core, in seconds of the core's `time.monotonic()`."""

    @property
    def scheduled_ts(self) -> float: ...


class Output(Protocol):
    """The next output of one of vLLM's requests. Only the first one has `prompt_logprobs`."""

    @property
    def outputs(self) -> Sequence[Completion]: ...
    @property
    def prompt_token_ids(self) -> Sequence[int] | None: ...
    @property
    def prompt_logprobs(self) -> Sequence[PositionLogprobs | None] | None: ...
    @property
    def num_cached_tokens(self) -> int | None: ...
    @property
    def metrics(self) -> RequestStats | None: ...


@dataclass(frozen=True, slots=True)
class VllmLimits:
    """The properties of a running vLLM.

    Attributes:
        max_model_len: Maximum length of a sequence in tokens, prompt and output together.
        max_num_seqs: Maximum number of sequences that run at once, in all cores together.
        max_logprobs: Maximum number of log probabilities of a token; None means the size of the
            vocabulary.
        num_kv_blocks: Blocks of the KV cache, in all cores together.
        kv_block_size: Tokens in a block.
        grammar_end: Id of the token that vLLM generates at the end of a grammar; None if unknown.
        has_drafts: True if vLLM uses speculative decoding.
        is_batch_invariant: True if an output does not depend on the other sequences of its batch.
    """

    max_model_len: int
    max_num_seqs: int
    max_logprobs: int | None
    num_kv_blocks: int
    kv_block_size: int
    grammar_end: int | None = None
    has_drafts: bool = False
    is_batch_invariant: bool = False


class VllmClient(Protocol):
    """A running vLLM."""

    @property
    def limits(self) -> VllmLimits: ...

    @property
    def is_dead(self) -> bool:
        """True if a process of vLLM has ended or has failed."""
        ...

    def generate(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
    ) -> AsyncGenerator[Output, None]:
        """Run one request. Closing the generator aborts the request.

        Args:
            prompt: See `service.vllm_engine.sampling.prompt`.
            sampling_arguments: See `service.vllm_engine.sampling.sampling_arguments`.

        Raises:
            EngineDead: vLLM has failed.
            StepFailed: This request failed. Others are not affected.
        """
        ...

    def stop(self, timeout_s: float) -> None:
        """End the processes of vLLM. This blocks the calling thread.

        Args:
            timeout_s: Time after which processes that are still running are killed.
        """
        ...


# Called after each step of a core, on the event loop's thread, with the core's index and vLLM's
# `SchedulerStats` and `IterationStats`. Either may be None.
StepListener: TypeAlias = Callable[[int, Any, Any], None]


class Launch(Protocol):
    """Starts vLLM and waits until it is ready. This blocks the calling thread."""

    def __call__(self, arguments: Mapping[str, Any], on_step: StepListener) -> VllmClient:
        """Start vLLM.

        Args:
            arguments: The arguments of vLLM's `AsyncEngineArgs`.

        Raises:
            ConfigError: An argument is unknown or has a wrong type.
            ModelLoadError: vLLM cannot serve the model.
        """
        ...
