"""The metrics and the record of one completion, as its client receives it."""

import time
from collections.abc import Callable
from typing import Any

from gateway_http.convert.chat_completions import finish_reason
from gateway_http.http.request_record import RequestRecord
from gateway_http.metrics import Metrics


class AnswerTelemetry:
    """One completion, from when the body of its request has been read.

    Args:
        spend: called with each number of tokens, of the prompt and of the completion, once.
        record: gets what the request's log line tells of the completion.
    """

    def __init__(
        self, metrics: Metrics, spend: Callable[[int], object], record: RequestRecord
    ) -> None:
        self._metrics = metrics
        self._spend = spend
        self._record = record
        self._started_s = time.perf_counter()
        self._last_event_s: float | None = None

    def note_chunk(self, chunk: Any, *, is_started: bool) -> None:
        """The events of a chunk are about to be written.

        Args:
            chunk: the service's, with the model's name for the client.
            is_started: whether a token is among them or was before.
        """
        now_s = time.perf_counter()
        self._learn_model(chunk.model)
        num_tokens = sum(choice.num_tokens for choice in chunk.choices)
        if self._last_event_s is None:
            if is_started:
                self._note_first_token(now_s - self._started_s)
        elif num_tokens:
            self._metrics.inter_token_s.labels(self._label).observe(
                (now_s - self._last_event_s) / num_tokens
            )
        if is_started:
            self._last_event_s = now_s
        self._record.finish_reasons += [
            finish_reason(choice.finish_reason) for choice in chunk.choices if choice.finish_reason
        ]
        self._note(chunk.usage.prompt_tokens, chunk.usage.cached_prompt_tokens, num_tokens)

    def note_answer(self, answer: Any) -> None:
        """A whole completion is about to be written, as OpenAI's API has it."""
        self._learn_model(answer.model)
        self._record.finish_reasons = [choice.finish_reason for choice in answer.choices]
        usage = answer.usage
        details = usage.prompt_tokens_details
        self._note(usage.prompt_tokens, details.cached_tokens, usage.completion_tokens)

    @property
    def _label(self) -> str:
        return self._metrics.models.of(self._record.model)

    def _learn_model(self, model: str) -> None:
        if model:  # which the first chunk of a stream has
            self._metrics.models.learn(self._record.model, model)

    def _note_first_token(self, duration_s: float) -> None:
        self._metrics.first_token_s.labels(self._label).observe(duration_s)
        self._record.first_token_s = duration_s

    def _note(self, num_prompt_tokens: int, num_cached_tokens: int, num_tokens: int) -> None:
        record = self._record
        if record.prompt_tokens:  # more than one chunk tells them
            num_prompt_tokens = 0
        record.prompt_tokens = (record.prompt_tokens or 0) + num_prompt_tokens
        record.cached_tokens = max(record.cached_tokens or 0, num_cached_tokens)
        record.completion_tokens = (record.completion_tokens or 0) + num_tokens
        self._metrics.prompt_tokens.labels(self._label).inc(num_prompt_tokens)
        self._metrics.generation_tokens.labels(self._label).inc(num_tokens)
        self._spend(num_prompt_tokens + num_tokens)
