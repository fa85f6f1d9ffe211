"""What a call counts for, and what its span says, while it runs and at its end."""

import time
from collections.abc import Iterable
from typing import Any

from chatrpc_process.tracing import Kind, Span, TraceContext, Tracer, Value
from service.metrics import Metrics
from service.rpc import phases
from service.rpc.gen_ai import Response, finish_reasons, request_attributes
from service.rpc.phases import Phases

_GENERATIONS = ("ChatService", "CompletionService")
# The others are the caller's errors, not those of a server.
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


class CallTelemetry:
    """One call, from when this is made.

    Args:
        full_method: `/package.Service/Method`.
        metadata: the call's, for the trace that it belongs to.
        peer: who calls, as gRPC writes it.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracer: Tracer,
        full_method: str,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        peer: str = "",
    ) -> None:
        self._metrics = metrics
        _, self._service, self._method = full_method.split("/")
        self._is_generation = self._service.endswith(_GENERATIONS)
        self._started_s = time.perf_counter()
        self._last_chunk_s: float | None = None
        self._asked = phases.begin()
        self._response = Response()
        # As the answer has told them:
        self._num_prompt_tokens = self._num_generated = self._num_finished = 0
        name = f"{self._service}/{self._method}"
        self.span = tracer.start(
            name, Kind.SERVER, TraceContext.read(metadata), _call_attributes(name, peer)
        )
        metrics.started.labels(self._service, self._method).inc()

    @property
    def num_tokens(self) -> int:
        """What it has cost so far, prompt and answer."""
        return self._num_prompt_tokens + self._num_generated + sum(self._untold())

    def note_request(self, message: Any) -> None:
        """The call's message has been read."""
        if self._is_generation and self.span.is_recording:
            is_streamed = self._method.startswith("Stream")
            self.span.tell(request_attributes(message.params, is_streamed=is_streamed))

    def note_chunk(self, chunk: Any) -> None:
        """A chunk of a stream is about to leave."""
        now_s = time.perf_counter()
        num_tokens = sum(choice.num_tokens for choice in chunk.choices)
        num_prompt_tokens = 0
        if self._last_chunk_s is None:
            first_chunk_s = now_s - self._started_s
            self._metrics.first_token_s.observe(first_chunk_s)
            if self.span.is_recording:
                self.span.tell({"gen_ai.response.time_to_first_chunk": first_chunk_s})
            num_prompt_tokens = chunk.usage.prompt_tokens  # which the first chunk tells
        elif num_tokens:
            self._metrics.inter_token_s.observe((now_s - self._last_chunk_s) / num_tokens)
        self._last_chunk_s = now_s
        self._note(chunk, num_prompt_tokens, num_tokens)

    def note_completion(self, completion: Any) -> None:
        """A whole answer is about to leave."""
        usage = completion.usage
        self._note(completion, usage.prompt_tokens, usage.completion_tokens)

    def end(self, code: str, reason: str) -> None:
        """The call is over, with the gRPC status code of this name and, if it failed, a reason."""
        duration_s = time.perf_counter() - self._started_s
        self._metrics.handled.labels(self._service, self._method, code).inc()
        self._metrics.handling_s.labels(self._service, self._method).observe(duration_s)
        num_prompt_tokens, num_generated = self._untold()
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.generation_tokens.inc(num_generated)
        stay = Phases.of(self._asked)
        if self._is_generation and code == "OK":
            self._metrics.request_s.observe(duration_s)
            self._note_finished(stay)
        elif self._is_generation and code == "CANCELLED":
            self._metrics.aborted.inc()
        if self.span.is_recording:
            self._end_span(code, reason, stay)
        self.span.end()

    def _note(self, piece: Any, num_prompt_tokens: int, num_generated: int) -> None:
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.generation_tokens.inc(num_generated)
        self._num_prompt_tokens += num_prompt_tokens
        self._num_generated += num_generated
        for name in finish_reasons(piece.choices):
            self._num_finished += 1
            self._metrics.finished.labels(name).inc()
        if self.span.is_recording:
            self._response.add(piece)

    def _untold(self) -> tuple[int, int]:
        """Tokens of prompts and of answers that have been computed for callers who did not stay.

        A whole answer has told all, but for what stood behind its end.
        """
        if self._num_finished == sum(request.n for request in self._asked):
            return 0, 0
        begun = [request for request in self._asked if request.times.scheduled_s is not None]
        num_prompt_tokens = sum(len(request.prompt_token_ids) for request in begun)
        num_generated = sum(request.times.num_tokens for request in begun)
        return (
            max(0, num_prompt_tokens - self._num_prompt_tokens),
            max(0, num_generated - self._num_generated),
        )

    def _note_finished(self, stay: Phases) -> None:
        metrics, num_generated = self._metrics, self._num_generated
        metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.request_generation_tokens.observe(num_generated)
        for request in self._asked:
            metrics.request_n.observe(request.n)
            if request.sampling.max_tokens is not None:
                metrics.request_max_tokens.observe(request.sampling.max_tokens)
        for phase in stay.until(time.monotonic()):
            metrics.phase_s[phase.name].observe(phase.duration_s)
            if phase.name == "decode" and num_generated > 1:
                metrics.per_token_s.observe(phase.duration_s / (num_generated - 1))
        if stay.scheduled_s is not None and stay.last_token_s is not None:
            metrics.inference_s.observe(stay.last_token_s - stay.scheduled_s)

    def _end_span(self, code: str, reason: str, stay: Phases) -> None:
        _end_phases(self.span, stay)
        self.span.tell({"rpc.response.status_code": code, **self._response.attributes})
        if code not in ("OK", "CANCELLED"):
            self.span.tell({"chatrpc.error.reason": reason})
        if code in _SERVER_ERRORS:
            self.span.fail(code)


def _call_attributes(name: str, peer: str) -> dict[str, Value]:
    """`peer` is such as `ipv4:127.0.0.1:4711`."""
    found: dict[str, Value] = {"rpc.system.name": "grpc", "rpc.method": name}
    kind, _, address = peer.partition(":")
    if kind in ("ipv4", "ipv6"):
        host, _, port = address.replace("%5B", "[").replace("%5D", "]").rpartition(":")
        found["network.peer.address"] = host.strip("[]")
        if port.isdigit():
            found["network.peer.port"] = int(port)
    return found


def _end_phases(span: Span, stay: Phases) -> None:
    unix_ns = phases.wall_clock()
    for phase in stay.until(time.monotonic()):
        span.phase(f"engine.{phase.name}", unix_ns(phase.start_s), unix_ns(phase.end_s))
