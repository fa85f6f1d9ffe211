"""The RPCs of the service that the gateway calls, as one table.

A row contains all that is needed to call, retry, route and trace an RPC.
`upstream/client.py` takes rows only, so an RPC without one cannot be called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from chatrpc.v1 import (
    chat_service_pb2,
    classification_service_pb2,
    completion_service_pb2,
    decision_service_pb2,
    embedding_service_pb2,
    model_service_pb2,
)
from gateway_http.upstream import affinity
from gateway_http.upstream.affinity import AffinityFields

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


@dataclass(frozen=True, eq=False, kw_only=True)  # rows are compared by identity
class Rpc(Generic[Request, Response]):
    """An RPC.

    Attributes:
        service: The full name of its service, such as `chatrpc.v1.ChatService`.
        method: Its name within the service.
        is_streamed: True if the service responds with a stream.
        is_retryable: True if gRPC may repeat a call on another replica after it failed without any
            response.
        model_of: Returns the model that a request names; "" for none.
        operation: The value of `gen_ai.operation.name` in traces; "" if it computes nothing.
        affinity: The parts of a request by which its replica may be chosen; None if any replica
            can take it.
    """

    service: str
    method: str
    request_type: type[Request]
    response_type: type[Response]
    is_streamed: bool
    is_retryable: bool
    model_of: Callable[[Request], str]
    operation: str
    affinity: AffinityFields[Request] | None

    @property
    def full_name(self) -> str:
        """The name `package.Service/Method`, as in traces. In HTTP/2 paths, a slash precedes it."""
        return f"{self.service}/{self.method}"


def _rpc(
    file: ModuleType,
    name: str,
    request_type: type[Request],
    response_type: type[Response],
    *,
    model_of: Callable[[Request], str],
    operation: str = "",
    is_retryable: bool = True,
    affinity: AffinityFields[Request] | None = None,
) -> Rpc[Request, Response]:
    """Return a row, checked against the descriptor of its method.

    Raises:
        KeyError, TypeError: The protos have no such method, or it has other types.
    """
    [service] = file.DESCRIPTOR.services_by_name.values()
    method = service.methods_by_name[name]
    if (method.input_type, method.output_type) != (
        request_type.DESCRIPTOR,
        response_type.DESCRIPTOR,
    ):
        raise TypeError(f"{method.full_name} has other types")
    return Rpc(
        service=service.full_name,
        method=name,
        request_type=request_type,
        response_type=response_type,
        is_streamed=method.server_streaming,
        is_retryable=is_retryable,
        model_of=model_of,
        operation=operation,
        affinity=affinity,
    )


def _model_of_params(request: Any) -> str:
    return str(request.params.model)


CREATE_CHAT_COMPLETION = _rpc(
    chat_service_pb2,
    "CreateChatCompletion",
    chat_service_pb2.CreateChatCompletionRequest,
    chat_service_pb2.CreateChatCompletionResponse,
    model_of=_model_of_params,
    operation="chat",
    affinity=affinity.CHAT,
)
STREAM_CHAT_COMPLETION = _rpc(
    chat_service_pb2,
    "StreamChatCompletion",
    chat_service_pb2.StreamChatCompletionRequest,
    chat_service_pb2.StreamChatCompletionResponse,
    model_of=_model_of_params,
    operation="chat",
    affinity=affinity.CHAT,
)
CREATE_COMPLETION = _rpc(
    completion_service_pb2,
    "CreateCompletion",
    completion_service_pb2.CreateCompletionRequest,
    completion_service_pb2.CreateCompletionResponse,
    model_of=_model_of_params,
    operation="text_completion",
    affinity=affinity.COMPLETION,
)
STREAM_COMPLETION = _rpc(
    completion_service_pb2,
    "StreamCompletion",
    completion_service_pb2.StreamCompletionRequest,
    completion_service_pb2.StreamCompletionResponse,
    model_of=_model_of_params,
    operation="text_completion",
    affinity=affinity.COMPLETION,
)
CREATE_EMBEDDINGS = _rpc(
    embedding_service_pb2,
    "CreateEmbeddings",
    embedding_service_pb2.CreateEmbeddingsRequest,
    embedding_service_pb2.CreateEmbeddingsResponse,
    model_of=lambda request: request.model,
    operation="embeddings",
)
CREATE_DECISION = _rpc(
    decision_service_pb2,
    "CreateDecision",
    decision_service_pb2.CreateDecisionRequest,
    decision_service_pb2.CreateDecisionResponse,
    model_of=lambda request: request.model,
    operation="decision",
    affinity=affinity.DECISION,
)
CLASSIFY = _rpc(
    classification_service_pb2,
    "Classify",
    classification_service_pb2.ClassifyRequest,
    classification_service_pb2.ClassifyResponse,
    model_of=lambda request: request.model,
    operation="classify",
)
SCORE = _rpc(
    classification_service_pb2,
    "Score",
    classification_service_pb2.ScoreRequest,
    classification_service_pb2.ScoreResponse,
    model_of=lambda request: request.model,
    operation="score",
)
RERANK = _rpc(
    classification_service_pb2,
    "Rerank",
    classification_service_pb2.RerankRequest,
    classification_service_pb2.RerankResponse,
    model_of=lambda request: request.model,
    operation="rerank",
)
LIST_MODELS = _rpc(
    model_service_pb2,
    "ListModels",
    model_service_pb2.ListModelsRequest,
    model_service_pb2.ListModelsResponse,
    model_of=lambda _: "",
)
GET_MODEL = _rpc(
    model_service_pb2,
    "GetModel",
    model_service_pb2.GetModelRequest,
    model_service_pb2.GetModelResponse,
    model_of=lambda request: request.id,
)
TOKENIZE = _rpc(
    model_service_pb2,
    "Tokenize",
    model_service_pb2.TokenizeRequest,
    model_service_pb2.TokenizeResponse,
    model_of=lambda request: request.model,
)
DETOKENIZE = _rpc(
    model_service_pb2,
    "Detokenize",
    model_service_pb2.DetokenizeRequest,
    model_service_pb2.DetokenizeResponse,
    model_of=lambda request: request.model,
)

RPCS: tuple[Rpc[Any, Any], ...] = (
    CREATE_CHAT_COMPLETION,
    STREAM_CHAT_COMPLETION,
    CREATE_COMPLETION,
    STREAM_COMPLETION,
    CREATE_EMBEDDINGS,
    CREATE_DECISION,
    CLASSIFY,
    SCORE,
    RERANK,
    LIST_MODELS,
    GET_MODEL,
    TOKENIZE,
    DETOKENIZE,
)
