"""What an answer counts for, as its client gets it."""

import time
from typing import Any

from gateway_http.metrics import Metrics


class AnswerTelemetry:
    """One answer, from when its request's body has been read."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._started_s = time.perf_counter()
        self._last_event_s: float | None = None
        self._has_prompt = False

    def note_chunk(self, chunk: Any, *, is_started: bool) -> None:
        """The events of this chunk of a stream are written; `is_started` once a token has been."""
        now_s = time.perf_counter()
        num_tokens = sum(choice.num_tokens for choice in chunk.choices)
        if self._last_event_s is not None and num_tokens:
            self._metrics.inter_token_s.observe((now_s - self._last_event_s) / num_tokens)
        if self._last_event_s is None and is_started:
            self._metrics.first_token_s.observe(now_s - self._started_s)
        if is_started:
            self._last_event_s = now_s
        if not self._has_prompt:  # the first chunk tells it, and the last one again
            self._has_prompt = bool(chunk.usage.prompt_tokens)
            self._metrics.prompt_tokens.inc(chunk.usage.prompt_tokens)
        self._metrics.generation_tokens.inc(num_tokens)

    def note_answer(self, answer: Any) -> None:
        """A whole answer, as OpenAI's API has it."""
        self._metrics.prompt_tokens.inc(answer.usage.prompt_tokens)
        self._metrics.generation_tokens.inc(answer.usage.completion_tokens)
