"""A service without a model. Its responses depend on the message."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from grpc_status import rpc_status

from chatrpc.v1 import (
    chat_pb2,
    chat_service_pb2,
    chat_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)

MODELS = [
    model_service_pb2.Model(
        id="tiny", engine="local", max_model_len=2048, aliases=["t", "[bold]"], root="org/tiny"
    ),
    model_service_pb2.Model(id="large", max_model_len=131072),
]


class FakeService:
    """A service on a free port. It records chat requests and keys, and counts cancelled calls."""

    def __init__(self, tls: grpc.ServerCredentials | None = None) -> None:
        self.requests: list[chat_pb2.ChatCompletionParams] = []
        self.keys: list[str | bytes | None] = []
        self.cancelled = threading.Semaphore(0)
        self.health = HealthServicer()
        self.models = FakeModels()  # type: ignore[abstract]  # one method is used
        self._server = grpc.server(ThreadPoolExecutor(4), interceptors=[_KeyNotes(self.keys)])
        chat = FakeChat(self)  # type: ignore[abstract]  # one method is used
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(chat, self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(self.models, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        address = "127.0.0.1:0"
        if tls is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, tls)
        self.target = f"127.0.0.1:{port}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait()


class _KeyNotes(grpc.ServerInterceptor):
    def __init__(self, keys: list[str | bytes | None]) -> None:
        self._keys = keys

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        self._keys.append(dict(handler_call_details.invocation_metadata).get("x-api-key"))
        return continuation(handler_call_details)


class FakeModels(model_service_pb2_grpc.ModelServiceServicer):
    """A model service with one model on each page."""

    def __init__(self) -> None:
        self.served = MODELS

    def ListModels(  # noqa: N802  named by the proto
        self, request: model_service_pb2.ListModelsRequest, context: object
    ) -> model_service_pb2.ListModelsResponse:
        start = int(request.page_token or 0)
        rest = len(self.served) - start - 1
        return model_service_pb2.ListModelsResponse(
            models=self.served[start : start + 1],
            next_page_token=str(start + 1) if rest > 0 else "",
        )


class FakeChat(chat_service_pb2_grpc.ChatServiceServicer):
    def __init__(self, service: FakeService) -> None:
        self._service = service

    def StreamChatCompletion(  # noqa: N802  named by the proto
        self,
        request: chat_service_pb2.StreamChatCompletionRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[chat_service_pb2.StreamChatCompletionResponse]:
        self._service.requests.append(request.params)
        question = request.params.messages[-1].content[0].text
        deltas = self._count(context) if question == "count" else _answer(question, context)
        for choice in deltas:
            chunk = chat_pb2.ChatCompletionChunk(choices=[choice])
            yield chat_service_pb2.StreamChatCompletionResponse(chunk=chunk)

    def _count(self, context: grpc.ServicerContext) -> Iterator[chat_pb2.ChoiceDelta]:
        """Yield deltas until the call is cancelled."""
        over = threading.Event()
        context.add_callback(over.set)
        context.add_callback(self._service.cancelled.release)
        number = 0
        while not over.wait(0.01):
            number += 1
            yield _delta(f"{number} ")


def _answer(question: str, context: grpc.ServicerContext) -> Iterator[chat_pb2.ChoiceDelta]:
    match question:
        case "think":
            yield chat_pb2.ChoiceDelta(delta=chat_pb2.Delta(reasoning_content="Hmm. "))
            yield _delta("Done.")
        case "ramble":
            yield _delta("And so on", chat_pb2.FINISH_REASON_LENGTH)
        case "too long":
            context.abort_with_status(rpc_status.to_status(CONTEXT_LENGTH_EXCEEDED))
        case "shout":
            context.abort_with_status(rpc_status.to_status(LONG_WINDED))
        case "break off":
            yield _delta("It was a")
            context.abort(grpc.StatusCode.INTERNAL, "It broke.\nTwice.")
        case _:
            yield chat_pb2.ChoiceDelta(delta=chat_pb2.Delta(role=chat_pb2.ROLE_ASSISTANT))
            yield _delta("You said: ")
            yield _delta(question)
            yield chat_pb2.ChoiceDelta(finish_reason=chat_pb2.FINISH_REASON_STOP)


def _delta(
    text: str, finish: chat_pb2.FinishReason.ValueType = chat_pb2.FINISH_REASON_UNSPECIFIED
) -> chat_pb2.ChoiceDelta:
    return chat_pb2.ChoiceDelta(delta=chat_pb2.Delta(content=text), finish_reason=finish)


def _packed(detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest) -> Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


CONTEXT_LENGTH_EXCEEDED = status_pb2.Status(
    code=code_pb2.INVALID_ARGUMENT,
    message="Too many tokens.",
    details=[
        _packed(error_details_pb2.BadRequest()),
        _packed(error_details_pb2.ErrorInfo(reason="CONTEXT_LENGTH_EXCEEDED", domain="chatrpc")),
    ],
)

# More than gRPC accepts as metadata, so that it replaces this status by its own.
LONG_WINDED = status_pb2.Status(
    code=code_pb2.NOT_FOUND,
    message="x" * 9000,
    details=[_packed(error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND", domain="chatrpc"))],
)
