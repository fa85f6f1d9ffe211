"""What an answer counts for, as its client gets it."""

import time
from collections.abc import Callable
from typing import Any

from gateway_http.metrics import Metrics


class AnswerTelemetry:
    """One answer, from when its request's body has been read.

    Args:
        spend: told of every token of the prompt and the answer, once.
    """

    def __init__(self, metrics: Metrics, spend: Callable[[int], object]) -> None:
        self._metrics = metrics
        self._spend = spend
        self._has_prompt = False
        self._started_s = time.perf_counter()
        self._last_event_s: float | None = None

    def note_chunk(self, chunk: Any, *, is_started: bool) -> None:
        """Its events are about to be written; `is_started`: a token among them or before."""
        now_s = time.perf_counter()
        num_tokens = sum(choice.num_tokens for choice in chunk.choices)
        if self._last_event_s is None:
            if is_started:
                self._metrics.first_token_s.observe(now_s - self._started_s)
        elif num_tokens:
            self._metrics.inter_token_s.observe((now_s - self._last_event_s) / num_tokens)
        if is_started:
            self._last_event_s = now_s
        num_prompt_tokens = 0 if self._has_prompt else chunk.usage.prompt_tokens
        self._has_prompt |= num_prompt_tokens > 0  # more than one chunk tells
        self._note(num_prompt_tokens, num_tokens)

    def note_answer(self, answer: Any) -> None:
        """A whole answer, as OpenAI's API has it."""
        self._note(answer.usage.prompt_tokens, answer.usage.completion_tokens)

    def _note(self, num_prompt_tokens: int, num_tokens: int) -> None:
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.generation_tokens.inc(num_tokens)
        self._spend(num_prompt_tokens + num_tokens)
