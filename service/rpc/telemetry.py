"""What a call counts for, while it runs and at its end."""

import time
from typing import Any

from chatrpc.v1 import chat_pb2
from service.metrics import Metrics

_GENERATIONS = ("ChatService", "CompletionService")


class CallMetrics:
    """One call, from when this is made.

    Args:
        full_method: `/package.Service/Method`.
    """

    def __init__(self, metrics: Metrics, full_method: str) -> None:
        self._metrics = metrics
        _, self._service, self._method = full_method.split("/")
        self._started_s = time.perf_counter()
        self._last_chunk_s: float | None = None
        self.num_tokens = 0  # of its prompt and its answer so far
        metrics.started.labels(self._service, self._method).inc()

    def note_chunk(self, chunk: Any) -> None:
        """A chunk of a stream is about to leave."""
        now_s = time.perf_counter()
        num_tokens = sum(choice.num_tokens for choice in chunk.choices)
        num_prompt_tokens = 0
        if self._last_chunk_s is None:
            self._metrics.first_token_s.observe(now_s - self._started_s)
            num_prompt_tokens = chunk.usage.prompt_tokens  # which the first chunk tells
        elif num_tokens:
            self._metrics.inter_token_s.observe((now_s - self._last_chunk_s) / num_tokens)
        self._last_chunk_s = now_s
        self._note_tokens(num_prompt_tokens, num_tokens)
        self._note_finished(chunk.choices)

    def note_completion(self, completion: Any) -> None:
        """A whole answer is about to leave."""
        self._note_tokens(completion.usage.prompt_tokens, completion.usage.completion_tokens)
        self._note_finished(completion.choices)

    def end(self, code: str) -> None:
        """The call is over, with the gRPC status code of this name."""
        duration_s = time.perf_counter() - self._started_s
        self._metrics.handled.labels(self._service, self._method, code).inc()
        self._metrics.handling_s.labels(self._service, self._method).observe(duration_s)
        if not self._service.endswith(_GENERATIONS):
            return
        if code == "OK":
            self._metrics.request_s.observe(duration_s)
        elif code == "CANCELLED":
            self._metrics.aborted.inc()

    def _note_tokens(self, num_prompt_tokens: int, num_generated: int) -> None:
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.generation_tokens.inc(num_generated)
        self.num_tokens += num_prompt_tokens + num_generated

    def _note_finished(self, choices: Any) -> None:
        for choice in choices:
            if choice.finish_reason:
                name = chat_pb2.FinishReason.Name(choice.finish_reason)
                self._metrics.finished.labels(name.removeprefix("FINISH_REASON_").lower()).inc()
