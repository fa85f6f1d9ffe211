"""Adds vLLM's protocol to the gRPC server."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from smg_grpc_proto.generated import vllm_engine_pb2

from service.rpc.calls.rpcs import Rpc
from service.rpc.calls.work_pools import WorkPools
from service.rpc.generation_calls import GenerationCalls
from service.rpc.serving.lifecycle import Lifecycle
from service.vllm_protocol.decode import GenerateReader, protocol_field
from service.vllm_protocol.servicer import VllmEngineServicer

_SERVICE = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"]
# The methods that return something of the model, so the key of a call must permit the model.
_MODEL_METHODS = ("GetModelInfo", "GetServerInfo", "GetLoads", "GetTokenizer")
_OTHER_METHODS = ("Abort", "HealthCheck")
_POLLED_METHODS = frozenset(("HealthCheck", "GetServerInfo", "GetLoads"))


class VllmProtocol:
    """`service.rpc.server.ServiceExtension` with the service `vllm.grpc.engine.VllmEngine`.

    The methods of the proto that are not served are UNIMPLEMENTED. Requests name no model. They are
    for the only model of `lifecycle`, whose id the key of a call must permit.
    """

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self.rpcs: Sequence[Rpc] = (
            self._generate(),
            *(_rpc(name, self._model) for name in _MODEL_METHODS),
            *(_rpc(name, lambda: "") for name in _OTHER_METHODS),
        )

    @property
    def service_name(self) -> str:
        return str(_SERVICE.full_name)

    def add_to(
        self, server: grpc.aio.Server, generations: GenerationCalls, pools: WorkPools
    ) -> None:
        servicer = VllmEngineServicer(self._lifecycle, generations, pools)
        handlers = {rpc.method: _handler(rpc, getattr(servicer, rpc.method)) for rpc in self.rpcs}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.service_name, handlers),)
        )

    def _model(self) -> str:
        """Return the id of the served model; "" if it is not loaded yet."""
        return next((model.card.id for model in self._lifecycle.models), "")

    def _generate(self) -> Rpc:
        return Rpc(
            service=self.service_name,
            method="Generate",
            request_type=GenerateReader(self._model),
            is_streamed=True,
            operation="text_completion",
            is_limited=True,
            model_of=lambda params: str(params.model),
            params_of=lambda params: params,
            output_of=lambda output: output.reported,
            field_of=protocol_field,
        )


def _rpc(method: str, model: Callable[[], str]) -> Rpc:
    """Return the row of an RPC that does not generate."""
    descriptor = _SERVICE.methods_by_name[method]
    return Rpc(
        service=str(_SERVICE.full_name),
        method=method,
        request_type=GetMessageClass(descriptor.input_type),
        is_streamed=descriptor.server_streaming,
        operation="",
        is_limited=False,
        model_of=lambda _: model(),
        params_of=lambda _: None,
        output_of=lambda _: None,
        is_polled=method in _POLLED_METHODS,
    )


def _handler(rpc: Rpc, method: Any) -> Any:
    """Return gRPC's handler of a method. The interceptor parses the requests."""
    make = (
        grpc.unary_stream_rpc_method_handler
        if rpc.is_streamed
        else grpc.unary_unary_rpc_method_handler
    )
    return make(method, response_serializer=_serialized)


def _serialized(response: Any) -> bytes:
    return bytes(response.SerializeToString())
