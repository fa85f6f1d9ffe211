"""The extension's rows agree with the proto, and telemetry counts its calls."""

import asyncio
from typing import Any

import pytest
from smg_grpc_proto.generated import vllm_engine_pb2

from service.domain.engine import FinishReason, TokenOutput
from service.metrics import Metrics
from service.rpc.calls.rpcs import SERVICE_NAMES, Rpc
from service.rpc.serving.lifecycle import Lifecycle
from service.vllm_protocol.extension import VllmProtocol
from tests.fakes.wait import until
from tests.service.vllm_protocol.protocol_server import PROMPT, generate, protocol_served

SERVICE = vllm_engine_pb2.DESCRIPTOR.services_by_name["VllmEngine"]
ROWS = VllmProtocol(Lifecycle(SERVICE_NAMES)).rpcs


@pytest.mark.parametrize("rpc", ROWS, ids=lambda rpc: rpc.method)
def test_row_agrees_with_its_descriptor(rpc: Rpc) -> None:
    method = SERVICE.methods_by_name[rpc.method]
    assert rpc.full_name == f"{SERVICE.full_name}/{rpc.method}"
    assert rpc.is_streamed == method.server_streaming
    assert rpc.request_type.DESCRIPTOR is method.input_type
    assert rpc.is_generation == rpc.is_limited == (rpc.method == "Generate")


def metric(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0


@pytest.mark.parametrize("stream", [True, False])
async def test_tokens_of_a_response_are_counted_once(*, stream: bool) -> None:
    metrics = Metrics()
    metrics.name_model("fake")
    async with protocol_served(metrics=metrics) as protocol:
        script: Any = [TokenOutput((1,)), TokenOutput((2, 3), FinishReason.LENGTH)]
        protocol.running.engine.script = script
        await protocol.generate(n=2, stream=stream)
        labels = {"grpc_service": SERVICE.full_name, "grpc_method": "Generate"}
        done = {**labels, "grpc_code": "OK"}
        await until(lambda: metric(metrics, "grpc_server_handled_total", **done) == 1)
    assert metric(metrics, "chatrpc_generation_tokens_total") == 6
    assert metric(metrics, "chatrpc_prompt_tokens_total") == len(PROMPT)
    assert metric(metrics, "chatrpc_time_to_first_token_seconds_count") == stream


async def test_aborted_response_is_counted_as_such() -> None:
    metrics = Metrics()
    metrics.name_model("fake")
    async with protocol_served(metrics=metrics) as protocol:
        engine = protocol.running.engine
        engine.script = [TokenOutput((1,)), asyncio.Event()]
        call = protocol.stub.Generate(generate(request_id="r"))
        await until(lambda: engine.num_waited == 1)
        await protocol.stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r"]))
        assert [response async for response in call]
        await until(lambda: metric(metrics, "chatrpc_aborted_requests_total") == 1)
    assert metric(metrics, "chatrpc_generation_tokens_total") == 1
