"""The part of vLLM that the engine uses, as a protocol. `launch.py` implements it over `AsyncLLM`.

Nothing here imports vLLM. The types of outputs and statistics have the names of vLLM's attributes.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
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


# Called with each output of one of vLLM's requests, on the event loop's thread. It returns False if
# the request has ended, or is to be ended.
OutputListener: TypeAlias = Callable[[Output], bool]


class Delivery:
    """Passes the outputs of one of vLLM's requests to a listener, until the request has ended.

    No task runs for an output, because that would take longer than all else that is done for it.
    """

    def __init__(self, on_output: OutputListener) -> None:
        self._on_output = on_output
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def put(self, output: Output | Exception) -> None:
        """Pass on an output, or end the request with an error. Does nothing after the end."""
        if self._ended.done():
            return
        if isinstance(output, Exception):
            self._fail(output)
            return
        try:
            if not self._on_output(output):
                self._ended.set_result(None)
        except Exception as error:  # the caller serves other requests too
            self._fail(error)

    async def wait_ended(self) -> None:
        """Wait until the request has ended.

        Raises:
            Exception: The error that has ended the request, or that the listener raised.
        """
        await self._ended

    def _fail(self, error: Exception) -> None:
        self._ended.set_exception(error)
        self._ended.exception()  # asyncio logs exceptions that nothing has read


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
        quantization: The method of the weights' quantization, or the name of their data type.
    """

    max_model_len: int
    max_num_seqs: int
    max_logprobs: int | None
    num_kv_blocks: int
    kv_block_size: int
    grammar_end: int | None = None
    has_drafts: bool = False
    is_batch_invariant: bool = False
    quantization: str = ""


class VllmClient(Protocol):
    """A running vLLM."""

    @property
    def limits(self) -> VllmLimits: ...

    @property
    def is_dead(self) -> bool:
        """True if a process of vLLM has ended or has failed."""
        ...

    async def run(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
        on_output: OutputListener,
    ) -> None:
        """Run one request until it has ended. Cancelling this aborts the request.

        Args:
            prompt: See `service.vllm_engine.sampling.prompt`.
            sampling_arguments: See `service.vllm_engine.sampling.sampling_arguments`.
            on_output: Receives the outputs, those of a step before the step is reported.

        Raises:
            EngineDead: vLLM has failed.
            StepFailed: This request failed. Others are not affected.
            Exception: The exception that `on_output` raised.
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
