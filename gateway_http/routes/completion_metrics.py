"""The metrics and the log record of one completion, or of one computed input."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from prometheus_client import Counter, Histogram

from chatrpc.v1 import chat_pb2
from gateway_http.convert.chat_completions import finish_reason
from gateway_http.http.request_record import RequestRecord
from gateway_http.metrics import Metrics


class CompletionMetrics:
    """Measures one completion, from the time at which the body of its request has been read.

    Args:
        metrics: The gateway's metrics.
        count_tokens: Called with numbers of tokens of the prompt and of the completion, each
            counted once.
        record: The record for the request's log line.
    """

    def __init__(
        self, metrics: Metrics, count_tokens: Callable[[int], object], record: RequestRecord
    ) -> None:
        self._metrics = metrics
        self._count_tokens = count_tokens
        self._record = record
        self._started_s = time.perf_counter()
        self._last_event_s: float | None = None
        self._of_model: _ModelMetrics | None = None

    def note_chunk(self, chunk: Any, model: str, *, is_started: bool) -> None:
        """Measure a chunk whose events are about to be sent.

        Args:
            chunk: The service's chunk.
            model: The name of the model for clients; "" if the chunk names none.
            is_started: True if the events of this chunk or an earlier one contain a token.
        """
        now_s = time.perf_counter()
        self._learn_model(model)
        num_tokens = 0
        for choice in chunk.choices:
            num_tokens += choice.num_tokens
            if choice.finish_reason:
                self._record.finish_reasons.append(finish_reason(choice.finish_reason))
        if self._last_event_s is None:
            if is_started:
                self._note_first_token(now_s - self._started_s)
        elif num_tokens:
            gap_s = now_s - self._last_event_s
            self._model_metrics.inter_token_s.observe(gap_s / num_tokens)
        if is_started:
            self._last_event_s = now_s
        if chunk.HasField("usage"):
            usage = chunk.usage
            self._note(usage.prompt_tokens, usage.cached_prompt_tokens, num_tokens)
        else:
            self._note(0, 0, num_tokens)

    def note_completion(self, whole: Any, model: str) -> None:
        """Measure a whole completion that is about to be sent.

        Args:
            whole: The service's completion.
            model: The name of the model for clients.
        """
        self._learn_model(model)
        self._record.finish_reasons = [finish_reason(c.finish_reason) for c in whole.choices]
        usage = whole.usage
        self._note(usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens)

    def note_computation(self, usage: Any, model: str) -> None:
        """Measure a computed input whose response is about to be sent.

        Args:
            usage: The tokens of the input. Those of decisions have cached and scored tokens, too.
            model: The name of the model for clients.
        """
        self._learn_model(model)
        if isinstance(usage, chat_pb2.Usage):
            self._note(usage.prompt_tokens, usage.cached_prompt_tokens, usage.completion_tokens)
            return
        num_tokens = usage.prompt_tokens
        self._record.prompt_tokens = num_tokens
        self._model_metrics.prompt_tokens.inc(num_tokens)
        self._count_tokens(num_tokens)

    @property
    def _model_metrics(self) -> "_ModelMetrics":
        label = self._metrics.models.of(self._record.model)
        if self._of_model is None or self._of_model.label != label:
            self._of_model = _ModelMetrics(self._metrics, label)
        return self._of_model

    def _learn_model(self, model: str) -> None:
        if model:
            self._metrics.models.learn(self._record.model, model)

    def _note_first_token(self, duration_s: float) -> None:
        self._metrics.first_token_s.labels(self._model_metrics.label).observe(duration_s)
        self._record.first_token_s = duration_s

    def _note(self, num_prompt_tokens: int, num_cached_tokens: int, num_tokens: int) -> None:
        record = self._record
        if record.prompt_tokens:  # more than one chunk may report them
            num_prompt_tokens = 0
        record.prompt_tokens = (record.prompt_tokens or 0) + num_prompt_tokens
        record.cached_tokens = max(record.cached_tokens or 0, num_cached_tokens)
        record.completion_tokens = (record.completion_tokens or 0) + num_tokens
        if num_prompt_tokens:
            self._model_metrics.prompt_tokens.inc(num_prompt_tokens)
        if num_tokens:
            self._model_metrics.generation_tokens.inc(num_tokens)
        self._count_tokens(num_prompt_tokens + num_tokens)


class _ModelMetrics:
    """The metrics of one model. It takes some microseconds to find them by their label."""

    def __init__(self, metrics: Metrics, label: str) -> None:
        self.label = label
        self._metrics = metrics

    @cached_property
    def prompt_tokens(self) -> Counter:
        return self._metrics.prompt_tokens.labels(self.label)

    @cached_property
    def generation_tokens(self) -> Counter:
        return self._metrics.generation_tokens.labels(self.label)

    @cached_property
    def inter_token_s(self) -> Histogram:
        return self._metrics.inter_token_s.labels(self.label)
