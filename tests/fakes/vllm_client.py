"""A vLLM whose outputs are a script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from service.errors import EngineDead
from service.vllm_engine.client import (
    Delivery,
    OutputListener,
    PositionLogprobs,
    StepListener,
    VllmLimits,
)


@dataclass
class FakeLogprob:
    logprob: float
    rank: int | None


@dataclass
class FakeCompletion:
    token_ids: Sequence[int] = ()
    finish_reason: str | None = None
    logprobs: Sequence[PositionLogprobs] | None = None


@dataclass
class FakeRequestStats:
    scheduled_ts: float


@dataclass
class FakeOutput:
    """An output of vLLM with one completion."""

    outputs: Sequence[FakeCompletion]
    prompt_token_ids: Sequence[int] | None = None
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None
    num_cached_tokens: int | None = 0
    metrics: FakeRequestStats | None = None

    @classmethod
    def of(cls, *token_ids: int, finish_reason: str | None = None, **options: Any) -> "FakeOutput":
        """Return an output with these tokens. `options` are those of the class."""
        return cls([FakeCompletion(token_ids, finish_reason)], **options)


@dataclass
class Submitted:
    """A request to a `FakeVllm`. Its outputs are what a test puts."""

    prompt: Mapping[str, Any]
    arguments: Mapping[str, Any]
    request_id: str
    priority: int
    delivery: Delivery
    is_ended: bool = False  # it has finished or was aborted

    def put(self, *steps: FakeOutput | Exception) -> None:
        for step in steps:
            self.delivery.put(step)


class FakeVllm:
    """`service.vllm_engine.client.VllmClient`.

    Attributes:
        arguments: The arguments of the start.
        submitted: All requests so far.
        is_dead: See `VllmClient`. `die` sets it.
        stops: The timeouts of all calls of `stop`.
    """

    def __init__(self, limits: VllmLimits) -> None:
        self.limits = limits
        self.arguments: Mapping[str, Any] = {}
        self.submitted: list[Submitted] = []
        self.is_dead = False
        self.stops: list[float] = []
        self._on_step: StepListener

    def launch(self, arguments: Mapping[str, Any], on_step: StepListener) -> "FakeVllm":
        """See `service.vllm_engine.client.Launch`."""
        self.arguments, self._on_step = arguments, on_step
        return self

    async def run(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
        on_output: OutputListener,
    ) -> None:
        """See `service.vllm_engine.client.VllmClient.run`."""
        delivery = Delivery(on_output)
        submitted = Submitted(prompt, sampling_arguments, request_id, priority, delivery)
        self.submitted.append(submitted)
        try:
            if self.is_dead:
                raise EngineDead
            await delivery.wait_ended()
        finally:
            submitted.is_ended = True

    def stop(self, timeout_s: float) -> None:
        self.stops.append(timeout_s)

    def step(self, core: int = 0, num_preempted: int = 0, **scheduler_stats: Any) -> None:
        """Report a step. `scheduler_stats` are fields of vLLM's `SchedulerStats`."""
        stats = {
            "num_running_reqs": len(self.running),
            "num_waiting_reqs": 0,
            "num_skipped_waiting_reqs": 0,
            "kv_cache_usage": 0.0,
            "prefix_cache_stats": SimpleNamespace(queries=0, hits=0),
            "spec_decoding_stats": None,
        }
        iteration_stats = SimpleNamespace(num_preempted_reqs=num_preempted)
        self._on_step(core, SimpleNamespace(**stats | scheduler_stats), iteration_stats)

    def die(self) -> None:
        """End as if the core's process was killed."""
        self.is_dead = True
        for each in self.running:
            each.put(EngineDead())

    @property
    def running(self) -> list[Submitted]:
        """The requests that have not ended."""
        return [each for each in self.submitted if not each.is_ended]
