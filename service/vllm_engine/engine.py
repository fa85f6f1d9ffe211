"""The engine `vllm`."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import structlog

from chatrpc_process.fairness.queue import FairQueue
from chatrpc_process.threads import run_in_daemon_thread
from service.domain.engine import (
    Caller,
    EngineCapabilities,
    EngineStats,
    EngineTimings,
    FinishReason,
    Request,
    TokenOutput,
)
from service.domain.engine_settings import EngineModel, EngineSettings
from service.errors import ChatrpcError, DeadlinePassed, EngineDead, StepFailed
from service.streams.hang_detector import HangDetector
from service.streams.request_streams import RequestStreams
from service.vllm_engine.arguments import engine_arguments, settings_arguments
from service.vllm_engine.child import kill_processes, prepare_environment, running_processes
from service.vllm_engine.client import Launch, Output, StepListener, VllmClient
from service.vllm_engine.sampling import UNSUPPORTED_WITH_DRAFTS, prompt, sampling_arguments
from service.vllm_engine.sequence_reader import SequenceReader
from service.vllm_engine.statistics import Statistics

# Sequences that wait inside vLLM, as a fraction of those that can run. They take the slots of
# finished sequences in the next step. Those that wait in this process would come one step later.
_STANDBY = 1 / 8
# Number of more urgent sequences of the same caller that may overtake a waiting sequence.
_MAX_OVERTAKES = 16
# Interval at which vLLM's processes are checked.
_CHECK_INTERVAL_S = 0.25
# Maximum time that vLLM's processes get to end by themselves.
_STOP_TIMEOUT_S = 5.0
_UNFULFILLED = "vLLM has ended the output before it was complete"

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Entry:
    """An unfinished request."""

    request: Request
    timings: EngineTimings
    num_cached_tokens: int = 0
    sequences: "dict[int, _Sequence]" = field(default_factory=dict)  # key: index
    timer: asyncio.TimerHandle | None = None  # its deadline


@dataclass(slots=True, eq=False)
class _Sequence:
    """An unfinished sequence. It waits in the queue until it has a task."""

    request_id: int
    entry: _Entry
    index: int
    arrival: int
    task: asyncio.Task[None] | None = None
    has_output: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """The order among the waiting sequences of one caller."""
        return self.entry.request.priority, self.arrival


class VllmEngine:
    """`service.domain.engine.Engine` over a vLLM whose core is a process of its own.

    Each sequence is one of vLLM's requests. Only as many as can run, and a few more, are in vLLM.
    The others wait here, where callers take turns.

    Args:
        arguments: Arguments of vLLM's `AsyncEngineArgs`, without those of the model.
        launch: Starts vLLM.
        max_queue_size: Maximum number of sequences that wait.
        step_timeout_s: Maximum duration of a step of vLLM, in seconds. If one takes longer, the
            engine has failed.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        launch: Launch,
        *,
        max_queue_size: int,
        step_timeout_s: float,
    ) -> None:
        self._arguments = arguments
        self._launch = launch
        self._step_timeout_s = step_timeout_s
        self._streams = RequestStreams(self, max_queue_size)
        self._statistics = Statistics()
        self._client: VllmClient | None = None
        self._loop: asyncio.AbstractEventLoop
        self._entries: dict[int, _Entry] = {}
        self._queue: FairQueue[_Sequence] = FairQueue(_MAX_OVERTAKES)
        self._arrivals = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_failed = 0
        self._others: set[int] | None = None  # processes that were started before vLLM
        self._is_stopping = False
        self._dead = asyncio.Event()

    @property
    def capabilities(self) -> EngineCapabilities:
        known = EngineCapabilities(
            "vllm", continues_constraints=False, masks_logprobs=True, preempts_by_priority=False
        )
        if self._client is None:
            return known
        limits = self._client.limits
        return replace(
            known,
            unsupported=UNSUPPORTED_WITH_DRAFTS if limits.has_drafts else frozenset(),
            max_logprobs=limits.max_logprobs,
            is_batch_invariant=limits.is_batch_invariant,
            quantization=limits.quantization,
        )

    @property
    def max_model_len(self) -> int:
        return self._streams.max_model_len

    @property
    def max_request_sequences(self) -> int:
        return self._streams.max_request_sequences

    async def start(self, model: EngineModel) -> None:
        """Start vLLM, which loads the model. This takes a minute or more.

        Raises:
            ConfigError: An argument for vLLM is unknown or has a wrong type.
            ModelLoadError: vLLM cannot serve the model.
        """
        self._loop = asyncio.get_running_loop()
        self._others = running_processes()
        arguments = engine_arguments(self._arguments, model.path)
        launched = partial(self._launch, arguments, self._on_step)
        self._client = await run_in_daemon_thread(launched)
        limits = self._client.limits
        self._streams.open(limits.max_num_seqs, limits.max_model_len)

    def reserve(self, caller: Caller, num_sequences: int) -> AbstractContextManager[None]:
        """See `service.domain.engine.Engine.reserve`."""
        return self._streams.reserve(caller, num_sequences)

    def generate(
        self, request: Request, *, is_reserved: bool = False
    ) -> AsyncGenerator[TokenOutput, int | None]:
        """See `service.domain.engine.Engine.generate`.

        vLLM reports the first step of a request only with its first token. So no item without a
        token comes between the first item and the first token.
        """
        return self._streams.generate(request, is_reserved=is_reserved)

    def stats(self) -> EngineStats:
        if self._client is None:
            return EngineStats()
        return replace(
            self._statistics.engine_stats(self._client.limits, len(self._tasks), len(self._queue)),
            num_failed_steps=self._num_failed,
        )

    async def wait_dead(self) -> None:
        """See `service.domain.engine.Engine.wait_dead`.

        The end of a process of vLLM, and hangs, are detected only while this method is awaited.
        """
        detector = HangDetector(self._step_timeout_s)
        interval_s = min(_CHECK_INTERVAL_S, detector.interval_s)
        next_check_s = 0.0
        while not self._dead.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await self._dead.wait()
            if self._client is None or self._is_stopping:
                continue
            if self._client.is_dead:
                log.error("core_process_ended")
                self._die()
            next_check_s -= interval_s
            if next_check_s <= 0:
                next_check_s = detector.interval_s
                if detector.check(self._statistics.num_steps, is_idle=not self._tasks):
                    log.error("engine_hangs", step_s=round(detector.stuck_s, 1))
                    self._die()

    async def stop(self) -> bool:
        """Fail the unfinished requests with EngineDead, and end the processes of vLLM.

        If vLLM is being started, its processes are killed.

        Returns:
            True if the engine has not failed.
        """
        self._is_stopping = True
        self._streams.close()
        has_failed = self._dead.is_set()
        if self._client is None:
            if self._others is not None:
                kill_processes(except_for=self._others)
        else:
            has_failed = has_failed or self._client.is_dead
            timeout_s = 0.0 if has_failed else _STOP_TIMEOUT_S
            await run_in_daemon_thread(partial(self._client.stop, timeout_s))
        return not has_failed

    def add(self, request_id: int, request: Request, queued_s: float) -> None:
        """See `service.streams.request_streams.EngineWork.add`."""
        entry = _Entry(request, EngineTimings(queued_s))
        self._entries[request_id] = entry
        if request.deadline is not None:
            delay_s = request.deadline - time.monotonic()
            entry.timer = self._loop.call_later(delay_s, self._expire, request_id)
        for index in range(request.n):
            sequence = _Sequence(request_id, entry, index, next(self._arrivals))
            entry.sequences[index] = sequence
            self._queue.push(request.caller.name, request.caller.weight, sequence)
        self._submit_waiting()

    def finish(self, request_id: int, index: int) -> None:
        """See `service.streams.request_streams.EngineWork.finish`."""
        entry = self._entries.get(request_id)
        if entry is not None and index in entry.sequences:
            self._end(entry.sequences.pop(index))

    def abort(self, request_id: int) -> None:
        """See `service.streams.request_streams.EngineWork.abort`."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return
        if entry.timer is not None:
            entry.timer.cancel()
        for sequence in entry.sequences.values():
            self._end(sequence)
        entry.sequences.clear()

    def _end(self, sequence: _Sequence) -> None:
        if sequence.task is not None:
            sequence.task.cancel()
        else:
            self._queue.remove(sequence)

    def _expire(self, request_id: int) -> None:
        """Fail a request at its deadline if one of its sequences has no token yet."""
        entry = self._entries.get(request_id)
        if entry is None or all(each.has_output for each in entry.sequences.values()):
            return
        message = "The deadline passed while the request was waiting in the queue."
        self._fail(request_id, DeadlinePassed(message))

    def _fail(self, request_id: int, error: ChatrpcError) -> None:
        self._streams.put(request_id, error)
        self.abort(request_id)

    def _submit_waiting(self) -> None:
        """Submit sequences to vLLM, in the order of the queue, while it has room."""
        assert self._client is not None  # noqa: S101  # requests are admitted after the start
        max_num_seqs = self._client.limits.max_num_seqs
        num_max = max_num_seqs + int(max_num_seqs * _STANDBY)
        while len(self._queue) and len(self._tasks) < num_max:
            sequence = self._queue.pop()
            task = self._loop.create_task(self._run(self._client, sequence))
            sequence.task = task
            self._tasks.add(task)
            task.add_done_callback(self._note_end)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._submit_waiting()

    async def _run(self, client: VllmClient, sequence: _Sequence) -> None:
        """Run a sequence in vLLM, and deliver its outputs. Cancelling this aborts the sequence."""
        request = sequence.entry.request
        reader = SequenceReader(request, sequence.index)
        last: tuple[Output, TokenOutput] | None = None

        def on_output(output: Output) -> bool:
            nonlocal last
            read = reader.read(output)
            if read.finish_reason is not None:
                last = output, read
                return False
            self._deliver(sequence, output, read)
            return True

        try:
            arguments = sampling_arguments(
                request, sequence.index, client.limits.max_model_len, client.limits.grammar_end
            )
            name = f"{sequence.request_id}-{sequence.index}"
            await client.run(prompt(request), arguments, name, request.priority, on_output)
            if last is not None:
                output, read = last
                if read.finish_reason is FinishReason.STOP and read.token_ids:
                    await self._check_grammar(reader, request)
                self._deliver(sequence, output, read)
        except ChatrpcError as error:
            self._num_failed += isinstance(error, StepFailed)
            self._fail(sequence.request_id, error)
        except Exception:
            log.exception("sequence_failed")
            self._num_failed += 1
            self._fail(sequence.request_id, EngineDead() if client.is_dead else StepFailed())

    def _deliver(self, sequence: _Sequence, output: Output, read: TokenOutput) -> None:
        """Deliver an output, with the timings of its request."""
        if read.is_progress:
            return
        entry = sequence.entry
        now_s = time.monotonic()
        entry.timings = _advanced(entry.timings, output, len(read.token_ids), now_s)
        if sequence.index == 0:
            entry.num_cached_tokens = read.num_cached_tokens
        sequence.has_output = True
        if read.finish_reason is not None:
            entry.sequences.pop(sequence.index, None)
        delivered = TokenOutput(
            read.token_ids,
            read.finish_reason,
            # The other sequences find the prompt of the first one in the prefix cache.
            entry.num_cached_tokens,
            read.index,
            read.logprobs,
            read.prompt_logprobs,
            entry.timings,
        )
        self._streams.put(sequence.request_id, delivered)

    async def _check_grammar(self, reader: SequenceReader, request: Request) -> None:
        """Set the constraint's `failure` if the output does not follow its grammar to the end.

        If following the grammar costs more than llguidance's limits, vLLM ends the output as if it
        were complete.
        """
        constraint = request.constraint
        if constraint is not None and await asyncio.to_thread(reader.is_incomplete):
            constraint.failure = _UNFULFILLED

    def _on_step(self, core: int, scheduler_stats: Any, iteration_stats: Any) -> None:
        self._statistics.add(core, scheduler_stats, iteration_stats)
        self._streams.release(len(self._tasks))

    def _die(self) -> None:
        self._streams.close()
        self._dead.set()


def _advanced(timings: EngineTimings, output: Output, num_new: int, now_s: float) -> EngineTimings:
    """Return the timings of a request after an output with `num_new` tokens."""
    scheduled_s = timings.scheduled_s
    if scheduled_s is None:
        scheduled_s = now_s
        # All processes of a machine share the clock. A core on another machine has its own.
        if output.metrics is not None and timings.queued_s is not None:
            scheduled_s = min(max(output.metrics.scheduled_ts, timings.queued_s), now_s)
    if not num_new:
        return replace(timings, scheduled_s=scheduled_s)
    first_s = now_s if timings.first_token_s is None else timings.first_token_s
    num_tokens = timings.num_tokens + num_new
    return EngineTimings(timings.queued_s, scheduled_s, first_s, now_s, num_tokens)


def vllm_engine(settings: EngineSettings) -> VllmEngine:
    """Return an engine over vLLM; see `service.domain.engine.EngineFactory`.

    Raises:
        ConfigError: An option has no meaning for vLLM, or contradicts `vllm_args`.
    """
    return VllmEngine(
        settings_arguments(settings),
        partial(_launch, settings),
        max_queue_size=settings.max_queue_size,
        step_timeout_s=settings.step_timeout_s,
    )


def check_settings(settings: EngineSettings) -> None:
    """Check the options and the arguments for vLLM. This imports vLLM, which takes seconds.

    Raises:
        ConfigError: An option has no meaning for vLLM, or an argument is unknown, has a wrong type
            or cannot be set.
    """
    arguments = settings_arguments(settings)
    prepare_environment(settings)
    from service.vllm_engine.launch import checked_arguments  # noqa: PLC0415  # see above

    checked_arguments(settings, arguments)


def _launch(
    settings: EngineSettings, arguments: Mapping[str, Any], on_step: StepListener
) -> VllmClient:
    prepare_environment(settings)
    from service.vllm_engine.launch import launch  # noqa: PLC0415  # importing vLLM takes seconds

    return launch(settings, arguments, on_step)
