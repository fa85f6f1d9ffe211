"""Health, reflection and load reports: large, empty and repeated requests."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from service.rpc.calls.standard_services import MAX_REQUEST_BYTES
from service.rpc.serving.load_reports import METHOD as LOAD_REPORTS
from service.rpc.serving.reflection import V1
from tests.support.grpc_server import Running
from tests.support.rpc_errors import rpc_error

WATCH = "/grpc.health.v1.Health/Watch"
CHECK = "/grpc.health.v1.Health/Check"


@pytest.mark.parametrize("method", [WATCH, LOAD_REPORTS])
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_large_request_to_a_standard_stream_is_rejected(
    running: Running, method: str, compression: grpc.Compression
) -> None:
    call: Any = running.channel.unary_stream(method)
    rejected = await rpc_error(call(bytes(7 << 20), compression=compression))
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT
    assert str(MAX_REQUEST_BYTES) in rejected.message


async def test_large_request_to_a_health_check_is_rejected(running: Running) -> None:
    name = "x" * (MAX_REQUEST_BYTES + 1)
    rejected = await rpc_error(running.health.Check(health_pb2.HealthCheckRequest(service=name)))
    assert rejected.code == grpc.StatusCode.INVALID_ARGUMENT


async def test_stream_without_a_request_is_served_as_an_empty_request(running: Running) -> None:
    async def nothing() -> Any:
        return
        yield

    call: Any = running.channel.stream_stream(WATCH)
    response = await call(nothing()).read()
    status = health_pb2.HealthCheckResponse.FromString(response)
    assert status.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("package", ["v1", "v1alpha"])
async def test_reflection_is_served_under_both_package_names(
    running: Running, package: str
) -> None:
    method = f"/grpc.reflection.{package}.ServerReflection/ServerReflectionInfo"
    call: Any = running.channel.stream_stream(
        method,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=V1),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="chatrpc.v1.ChatService"),
    ]
    listed, own, chat = [response async for response in call(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {V1, "grpc.reflection.v1alpha.ServerReflection", "chatrpc.v1.ChatService"} <= names
    assert own.file_descriptor_response.file_descriptor_proto
    assert chat.file_descriptor_response.file_descriptor_proto
