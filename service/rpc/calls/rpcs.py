"""The RPCs of this service, as one table.

Authorization, telemetry and the reading of messages use it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from chatrpc.v1 import (
    chat_service_pb2,
    classification_service_pb2,
    completion_service_pb2,
    decision_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpc:
    """An RPC.

    Attributes:
        service: Full name of its service, such as `chatrpc.v1.ChatService`.
        method: Its name within the service.
        is_streamed: True if the service responds with a stream.
        operation: Value of `gen_ai.operation.name` in traces; "" if it computes nothing.
        is_limited: True if a call counts against the limits of its key.
        model_of: Returns the name of the model in a request; "" if it names none.
        params_of: Returns the generation parameters of a request; None if it does not generate.
        output_of: Returns the completion in a response, or the chunk; None if there is neither.
        input_field: Name of the field with the input, if the model computes the input and generates
            nothing; else "".
        input_bytes: Takes a request and its size in bytes. Returns the size of all that the model
            computes, if `input_field` is set.
        field_of: Returns the RPC's own name of the field of an error.
        is_polled: True if clients call it every few seconds. Successful calls are not logged.
    """

    service: str
    method: str
    request_type: Any  # the message's class, or another with DESCRIPTOR and FromString
    is_streamed: bool
    operation: str
    is_limited: bool
    model_of: Callable[[Any], str]
    params_of: Callable[[Any], Any]
    output_of: Callable[[Any], Any]
    input_field: str = ""
    input_bytes: Callable[[Any, int], int] = lambda _, num_bytes: num_bytes
    field_of: Callable[[str], str] = str
    is_polled: bool = False

    @property
    def full_name(self) -> str:
        """`package.Service/Method`, the name in traces."""
        return f"{self.service}/{self.method}"

    @property
    def path(self) -> str:
        """`/package.Service/Method`, as gRPC passes it to interceptors."""
        return f"/{self.full_name}"

    @property
    def is_generation(self) -> bool:
        return bool(self.operation) and not self.input_field


def _generation(file: ModuleType, method: str, operation: str) -> Rpc:
    """Return the row of an RPC that generates, whose request has the field `params`."""
    rpc = _rpc(file, method, lambda request: request.params.model)
    return replace(
        rpc,
        operation=operation,
        params_of=lambda request: request.params,
        output_of=(
            (lambda response: response.chunk)
            if rpc.is_streamed
            else (lambda response: response.completion)
        ),
    )


def _pooling(file: ModuleType, method: str, operation: str, input_field: str) -> Rpc:
    """Return the row of an RPC whose input is computed and that generates nothing."""
    rpc = _rpc(file, method, lambda request: request.model)
    return replace(rpc, operation=operation, input_field=input_field)


def _rpc(
    file: ModuleType,
    method: str,
    model_of: Callable[[Any], str],
    *,
    is_limited: bool = True,
) -> Rpc:
    """Return the row of an RPC that computes nothing with a model.

    Raises:
        KeyError: The service of the file has no such method.
    """
    [service] = file.DESCRIPTOR.services_by_name.values()
    descriptor = service.methods_by_name[method]
    return Rpc(
        service=service.full_name,
        method=method,
        request_type=getattr(file, descriptor.input_type.name),
        is_streamed=descriptor.server_streaming,
        operation="",
        is_limited=is_limited,
        model_of=model_of,
        params_of=lambda _: None,
        output_of=lambda _: None,
    )


def _decision_bytes(request: Any, num_bytes: int) -> int:
    """Return the size of all prompts of a request for decisions: each has the whole conversation.

    Args:
        request: A `CreateDecisionRequest`.
        num_bytes: Its size.
    """
    num_repeated = max(0, len(request.questions) - 1)
    conversation_bytes: int = sum(message.ByteSize() for message in request.messages)
    return num_bytes + num_repeated * conversation_bytes


RPCS = (
    _generation(chat_service_pb2, "CreateChatCompletion", "chat"),
    _generation(chat_service_pb2, "StreamChatCompletion", "chat"),
    _generation(completion_service_pb2, "CreateCompletion", "text_completion"),
    _generation(completion_service_pb2, "StreamCompletion", "text_completion"),
    _pooling(embedding_service_pb2, "CreateEmbeddings", "embeddings", "input"),
    _pooling(classification_service_pb2, "Classify", "classify", "input"),
    _pooling(classification_service_pb2, "Score", "score", "pairs"),
    _pooling(classification_service_pb2, "Rerank", "rerank", "documents"),
    replace(
        _pooling(decision_service_pb2, "CreateDecision", "decision", "messages"),
        input_bytes=_decision_bytes,
    ),
    _rpc(model_service_pb2, "ListModels", lambda _: "", is_limited=False),
    _rpc(model_service_pb2, "GetModel", lambda request: request.id, is_limited=False),
    _rpc(model_service_pb2, "Tokenize", lambda request: request.model),
    _rpc(model_service_pb2, "Detokenize", lambda request: request.model),
)

BY_PATH = {rpc.path: rpc for rpc in RPCS}

SERVICE_NAMES = list(dict.fromkeys(rpc.service for rpc in RPCS))
