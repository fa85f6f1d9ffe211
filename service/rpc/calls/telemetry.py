"""The metrics, the span and the log fields of one call, collected while it runs."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from chatrpc.v1 import chat_pb2, completion_pb2
from chatrpc_process.tracing.api import Kind, Span, TraceContext, Tracer, Value
from service.domain.backend import Prompt
from service.domain.engine import EngineTimings
from service.metrics import Metrics
from service.rpc.calls import engine_timings
from service.rpc.calls.genai_attributes import (
    Response,
    finish_reasons,
    pooling_attributes,
    request_attributes,
)
from service.rpc.calls.rpcs import Rpc

# Longer model names are truncated in the log and the span.
_MAX_MODEL_CHARS = 200
# The status codes that are errors of the server. All others are errors of the caller.
# https://opentelemetry.io/docs/specs/semconv/rpc/grpc/
_SERVER_ERRORS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


class CallTelemetry:
    """The telemetry of one call. The call starts when this object is made.

    Args:
        metadata: The call's metadata, which may name the trace that it belongs to.
        peer: The client's address as gRPC writes it, such as `ipv4:127.0.0.1:4711`.
    """

    def __init__(
        self,
        metrics: Metrics,
        tracer: Tracer,
        rpc: Rpc,
        metadata: Iterable[tuple[str, str | bytes]] = (),
        peer: str = "",
    ) -> None:
        self._metrics = metrics
        self._rpc = rpc
        self._started_s = time.monotonic()
        self._last_chunk_s: float | None = None
        self._client = _address(peer)
        self._model = ""  # the name in the request
        self._prompts: Sequence[Prompt] = ()
        self._n = 0  # choices for each prompt
        self._max_tokens: int | None = None
        self._timings: dict[int, EngineTimings] = {}  # keyed by the index of the prompt
        self._response = Response()
        # The token counts in the response so far.
        self._num_prompt_tokens = self._num_generated = self._num_cached = 0
        self._finish_reasons: list[str] = []
        self._is_aborted = False
        name = rpc.full_name
        self.span = tracer.start(
            name, Kind.SERVER, TraceContext.read(metadata), _call_attributes(name, peer)
        )
        metrics.started.labels(self._rpc.service, self._rpc.method).inc()

    @property
    def num_tokens(self) -> int:
        """Number of tokens computed so far, in prompts and completions."""
        return self._num_prompt_tokens + self._num_generated + sum(self._unreported_tokens())

    def note_request(self, message: Any) -> None:
        """Note the request message, which has just been read."""
        self._model = self._rpc.model_of(message)[:_MAX_MODEL_CHARS]
        if not self.span.is_recording:
            return
        if self._rpc.is_generation:
            self.span.set_attributes(request_attributes(self._rpc, self._rpc.params_of(message)))
        elif self._rpc.input_field:
            self.span.set_attributes(pooling_attributes(self._rpc, message))

    def note_prompts(self, prompts: Sequence[Prompt], n: int, max_tokens: int | None) -> None:
        """Note the prompts of a generation that is about to be admitted.

        Args:
            n: Number of choices for each prompt.
            max_tokens: Maximum number of tokens of a choice; None if there is none.
        """
        self._prompts, self._n, self._max_tokens = prompts, n, max_tokens

    def note_timings(self, prompt_index: int, timings: EngineTimings) -> None:
        """Note the timings of a prompt's request, as its last output reports them."""
        self._timings[prompt_index] = timings

    def note_abort(self) -> None:
        """Note that the generation has been aborted, although the call is not cancelled."""
        self._is_aborted = True

    def note_output(self, output: Any) -> None:
        """Note a chunk or a whole completion that is about to be sent; None is ignored."""
        if isinstance(output, chat_pb2.ChatCompletion | completion_pb2.Completion):
            self.note_completion(output)
        elif output is not None:
            self.note_chunk(output)

    def note_chunk(self, chunk: Any) -> None:
        """Note a chunk of a stream that is about to be sent."""
        now_s = time.monotonic()
        num_tokens = sum([choice.num_tokens for choice in chunk.choices])
        # The first chunk has it, and the last one too. A remote backend reports it only at the end.
        num_prompt_tokens = 0
        if chunk.HasField("usage"):
            num_prompt_tokens = max(0, chunk.usage.prompt_tokens - self._num_prompt_tokens)
        if self._last_chunk_s is None:
            first_chunk_s = now_s - self._started_s
            self._metrics.first_token_s.observe(first_chunk_s)
            if self.span.is_recording:
                self.span.set_attributes({"gen_ai.response.time_to_first_chunk": first_chunk_s})
        elif num_tokens:
            self._metrics.inter_token_s.observe((now_s - self._last_chunk_s) / num_tokens)
        self._last_chunk_s = now_s
        self._note(chunk, num_prompt_tokens, num_tokens)

    def note_completion(self, completion: Any) -> None:
        """Note a whole completion that is about to be sent."""
        usage = completion.usage
        self._note(completion, usage.prompt_tokens, usage.completion_tokens)

    def note_pooling(self, response: Any) -> None:
        """Note a response without generated tokens that is about to be sent."""
        self._num_prompt_tokens = num_tokens = response.usage.prompt_tokens
        self._metrics.prompt_tokens.inc(num_tokens)
        if isinstance(response.usage, chat_pb2.Usage):
            self._num_generated = response.usage.completion_tokens
            self._metrics.generation_tokens.inc(self._num_generated)
        if self.span.is_recording:
            self.span.set_attributes(
                {
                    "gen_ai.response.model": response.model,
                    "gen_ai.usage.input_tokens": num_tokens,
                }
            )

    def end(self, code: str, reason: str) -> None:
        """Record the end of the call in the metrics and the span.

        Args:
            code: Name of the gRPC status code.
            reason: Name of the `chatrpc.v1.ErrorReason`, if the call failed.
        """
        duration_s = time.monotonic() - self._started_s
        self._metrics.handled.labels(self._rpc.service, self._rpc.method, code).inc()
        self._metrics.handling_s.labels(self._rpc.service, self._rpc.method).observe(duration_s)
        num_prompt_tokens, num_generated = self._unreported_tokens()
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.generation_tokens.inc(num_generated)
        timings = engine_timings.merged(self._timings.values())
        if self._rpc.is_generation and (self._is_aborted or code == "CANCELLED"):
            self._metrics.aborted.inc()
        elif self._rpc.is_generation and code == "OK":
            self._metrics.request_s.observe(duration_s)
            self._note_finished(timings)
        if self.span.is_recording:
            self._end_span(code, reason, timings)
        self.span.end()

    def log_fields(self) -> dict[str, Any]:
        """Return the fields of the call's log line. Times are in milliseconds.

        No field contains text of a prompt or of a completion.
        """
        fields: dict[str, Any] = {"client": self._client}
        if self._model:
            fields["model"] = self._model
        if self._rpc.is_generation:
            fields |= self._generation_fields()
        elif self._num_prompt_tokens:
            fields["prompt_tokens"] = self._num_prompt_tokens
        fields["duration_ms"] = _ms(time.monotonic() - self._started_s)
        return fields

    def _generation_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {"is_streamed": self._rpc.is_streamed}
        num_prompt_tokens, num_generated = self._unreported_tokens()
        if self._prompts:
            fields["prompt_tokens"] = self._num_prompt_tokens + num_prompt_tokens
            fields["completion_tokens"] = self._num_generated + num_generated
            fields["cached_tokens"] = self._num_cached
        timings = engine_timings.merged(self._timings.values())
        if timings.queued_s is not None:
            fields["prepare_ms"] = _ms(timings.queued_s - self._started_s)
        for phase in engine_timings.phases(timings, time.monotonic()):
            fields[f"{phase.name}_ms"] = _ms(phase.duration_s)
        if timings.first_token_s is not None:
            fields["ttft_ms"] = _ms(timings.first_token_s - self._started_s)
        if self._finish_reasons:
            fields["finish_reasons"] = self._finish_reasons
        return fields

    def _note(self, piece: Any, num_prompt_tokens: int, num_generated: int) -> None:
        if num_prompt_tokens:
            self._metrics.prompt_tokens.inc(num_prompt_tokens)
            self._num_prompt_tokens += num_prompt_tokens
        if num_generated:
            self._metrics.generation_tokens.inc(num_generated)
            self._num_generated += num_generated
        if piece.HasField("usage"):
            self._num_cached = max(self._num_cached, piece.usage.cached_prompt_tokens)
        for name in finish_reasons(piece.choices):
            self._finish_reasons.append(name)
            self._metrics.finished.labels(name).inc()
        if self.span.is_recording:
            self._response.add(piece)

    def _unreported_tokens(self) -> tuple[int, int]:
        """Return the numbers of prompt and completion tokens that were computed but not reported.

        If the response was complete, these are only the tokens after a stop string.
        """
        if len(self._finish_reasons) == len(self._prompts) * self._n:
            return 0, 0
        scheduled = {i: t for i, t in self._timings.items() if t.scheduled_s is not None}
        num_prompt_tokens = sum(self._prompts[i].num_tokens or 0 for i in scheduled)
        num_generated = sum(timings.num_tokens for timings in scheduled.values())
        return (
            max(0, num_prompt_tokens - self._num_prompt_tokens),
            max(0, num_generated - self._num_generated),
        )

    def _note_finished(self, timings: EngineTimings) -> None:
        metrics, num_generated = self._metrics, self._num_generated
        metrics.request_prompt_tokens.observe(self._num_prompt_tokens)
        metrics.request_generation_tokens.observe(num_generated)
        for _ in self._prompts:
            metrics.request_n.observe(self._n)
            if self._max_tokens is not None:
                metrics.request_max_tokens.observe(self._max_tokens)
        if timings.queued_s is not None:
            metrics.prepare_s.observe(timings.queued_s - self._started_s)
        for phase in engine_timings.phases(timings, time.monotonic()):
            metrics.phase_s[phase.name].observe(phase.duration_s)
            if phase.name == "decode" and num_generated > 1:
                metrics.per_token_s.observe(phase.duration_s / (num_generated - 1))
        if timings.scheduled_s is not None and timings.last_token_s is not None:
            metrics.inference_s.observe(timings.last_token_s - timings.scheduled_s)

    def _end_span(self, code: str, reason: str, timings: EngineTimings) -> None:
        _end_phases(self.span, timings)
        self.span.set_attributes({"rpc.response.status_code": code, **self._response.attributes})
        if code not in ("OK", "CANCELLED"):
            self.span.set_attributes({"chatrpc.error.reason": reason})
        if code in _SERVER_ERRORS:
            self.span.fail(code)


def _call_attributes(name: str, peer: str) -> dict[str, Value]:
    """Return the span attributes of a call. `peer` looks like `ipv4:127.0.0.1:4711`."""
    found: dict[str, Value] = {"rpc.system.name": "grpc", "rpc.method": name}
    host, _, port = _address(peer).rpartition(":")
    if host:
        found["network.peer.address"] = host.strip("[]")
        if port.isdigit():
            found["network.peer.port"] = int(port)
    return found


def _address(peer: str) -> str:
    """Return `127.0.0.1:4711` for `ipv4:127.0.0.1:4711`; "" for a peer that has no address."""
    kind, _, address = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return address.replace("%5B", "[").replace("%5D", "]")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _end_phases(span: Span, timings: EngineTimings) -> None:
    unix_ns = engine_timings.wall_clock()
    for phase in engine_timings.phases(timings, time.monotonic()):
        span.phase(f"engine.{phase.name}", unix_ns(phase.start_s), unix_ns(phase.end_s))
