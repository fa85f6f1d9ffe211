"""Span attributes of generations and embeddings, by OpenTelemetry's conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai. No attribute contains text of a
prompt, an output or a stop string.
"""

from collections.abc import Iterable
from typing import Any

from chatrpc.v1 import chat_pb2
from chatrpc_process.tracing.api import Value
from service.rpc.calls.rpcs import Rpc

# The name in the conventions of each sampling parameter, by its name in the proto.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_completion_tokens": "max_tokens",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
    "n": "choice.count",
}


def request_attributes(rpc: Rpc, params: Any) -> dict[str, Value]:
    """Return the attributes of the parameters that a request sets. Defaults are left out."""
    found = _request(rpc, params.model)
    if rpc.is_streamed:
        found["gen_ai.request.stream"] = True
    for field, name in _SAMPLING.items():
        if params.sampling.HasField(field):
            found[f"gen_ai.request.{name}"] = getattr(params.sampling, field)
    return found


def pooling_attributes(rpc: Rpc, request: Any) -> dict[str, Value]:
    """Return the attributes of a request that generates nothing, such as one for embeddings."""
    found = _request(rpc, request.model)
    if "dimensions" in request.DESCRIPTOR.fields_by_name and request.HasField("dimensions"):
        found["gen_ai.embeddings.dimension.count"] = request.dimensions
    return found


class Response:
    """The attributes of a response, collected from its chunks."""

    def __init__(self) -> None:
        self._head: dict[str, Value] = {}
        self._usage = chat_pb2.Usage()
        self._reasons: dict[int, str] = {}

    def add(self, piece: Any) -> None:
        """Add a completion, or a chunk of one."""
        if piece.id and not self._head:
            self._head = {"gen_ai.response.id": piece.id, "gen_ai.response.model": piece.model}
        if piece.HasField("usage"):
            self._usage = piece.usage
        for choice in piece.choices:
            if choice.finish_reason:
                self._reasons[choice.index] = finish_reason(choice.finish_reason)

    @property
    def attributes(self) -> dict[str, Value]:
        if not self._head:
            return {}
        usage = self._usage
        return {
            **self._head,
            "gen_ai.response.finish_reasons": tuple(
                self._reasons[i] for i in sorted(self._reasons)
            ),
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_prompt_tokens,
            "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        }


def _request(rpc: Rpc, model: str) -> dict[str, Value]:
    return {
        "gen_ai.operation.name": rpc.operation,
        "gen_ai.provider.name": "chatrpc",
        "gen_ai.request.model": model,
    }


def finish_reason(number: "chat_pb2.FinishReason.ValueType") -> str:
    """Return a finish reason as OpenAI's API writes it."""
    return chat_pb2.FinishReason.Name(number).removeprefix("FINISH_REASON_").lower()


def finish_reasons(choices: Iterable[Any]) -> list[str]:
    return [finish_reason(choice.finish_reason) for choice in choices if choice.finish_reason]
