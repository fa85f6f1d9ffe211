"""A vLLM whose core is a real process with a fake model. A test can kill or freeze that process."""

import asyncio
import contextlib
import multiprocessing
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

from service.errors import EngineDead, ModelLoadError, StepFailed
from service.vllm_engine.child import plugin
from service.vllm_engine.client import Delivery, OutputListener, StepListener, VllmLimits
from tests.fakes.tokenizer import EOS
from tests.fakes.vllm_client import FakeOutput

LIMITS = VllmLimits(
    max_model_len=1 << 16, max_num_seqs=32, max_logprobs=20, num_kv_blocks=4096, kv_block_size=16
)


def run_core(connection: Connection, step_s: float, failure: str) -> None:
    """Run the core: generate "a" for every token of every request.

    A request with `!fail` in its prompt fails. One with `!lose` raises an error that ends the core.

    Args:
        step_s: Duration of a step, in seconds.
        failure: The text of an error with which the start fails; empty if it succeeds.
    """
    plugin()
    if failure:
        raise MemoryError(failure)
    connection.send([])  # it is ready
    unfinished: dict[str, int] = {}
    while True:
        while not unfinished or connection.poll():
            request_id, prompt, num_tokens = connection.recv()
            if b"!lose" in prompt:
                raise MemoryError("secret words of the device")
            if num_tokens:
                unfinished[request_id] = -1 if b"!fail" in prompt else num_tokens
            else:
                unfinished.pop(request_id, None)
        time.sleep(step_s)
        unfinished = {request_id: left - 1 for request_id, left in unfinished.items()}
        connection.send(list(unfinished.items()))
        unfinished = {request_id: left for request_id, left in unfinished.items() if left > 0}


class CoreProcess:
    """`service.vllm_engine.client.VllmClient` over a process that runs `run_core`.

    Raises:
        ModelLoadError: The core's start failed.
    """

    limits = LIMITS

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_step: StepListener,
        step_s: float,
        failure: str = "",
    ) -> None:
        self._loop = loop
        self._on_step = on_step
        self._deliveries: dict[str, Delivery] = {}
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_core, args=(theirs, step_s, failure))
        self._process.start()
        theirs.close()
        try:
            self._connection.recv()
        except EOFError:
            raise ModelLoadError("vLLM cannot serve the model: its core has ended") from None
        threading.Thread(target=self._receive, daemon=True).start()

    @property
    def is_dead(self) -> bool:
        return not self._process.is_alive()

    async def run(
        self,
        prompt: Mapping[str, Any],
        sampling_arguments: Mapping[str, Any],
        request_id: str,
        priority: int,
        on_output: OutputListener,
    ) -> None:
        """See `service.vllm_engine.client.VllmClient.run`."""
        text = bytes(token_id for token_id in prompt["prompt_token_ids"] if token_id < EOS)
        delivery = self._deliveries[request_id] = Delivery(on_output)
        self._send(request_id, text, sampling_arguments["max_tokens"])
        try:
            await delivery.wait_ended()
        finally:
            del self._deliveries[request_id]
            self._send(request_id, b"", 0)

    def stop(self, timeout_s: float) -> None:
        """See `service.vllm_engine.client.VllmClient.stop`."""
        self._process.kill()
        self._process.join()

    def _send(self, request_id: str, prompt: bytes, num_tokens: int) -> None:
        """Send a request to the core, or its abort if `num_tokens` is 0."""
        with contextlib.suppress(OSError):  # the core has ended, which `_receive` notices
            self._connection.send((request_id, prompt, num_tokens))

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._loop.call_soon_threadsafe(self._deliver, self._connection.recv())
        self._process.join()
        self._loop.call_soon_threadsafe(self._die)

    def _deliver(self, step: list[tuple[str, int]]) -> None:
        """Deliver the outputs of a step: request ids, and the numbers of tokens still to come."""
        for request_id, left in step:
            if delivery := self._deliveries.get(request_id):
                reason = None if left else "length"
                failed = left < 0
                delivery.put(
                    StepFailed() if failed else FakeOutput.of(ord("a"), finish_reason=reason)
                )
        scheduler_stats = SimpleNamespace(
            num_running_reqs=len(step),
            num_waiting_reqs=0,
            num_skipped_waiting_reqs=0,
            kv_cache_usage=len(step) / LIMITS.num_kv_blocks,
            prefix_cache_stats=SimpleNamespace(queries=0, hits=0),
            spec_decoding_stats=None,
        )
        self._on_step(0, scheduler_stats, SimpleNamespace(num_preempted_reqs=0))

    def _die(self) -> None:
        for delivery in self._deliveries.values():
            delivery.put(EngineDead())
