"""The server's options, and what it does with an address."""

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # core itself
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.rpc.lifecycle import Lifecycle
from service.rpc.server import OPTIONS, SERVICE_NAMES, Server
from tests.service.rpc.conftest import Running


def test_core_knows_every_option_key() -> None:
    """An unknown key is ignored in silence: the key must stand, whole, in the binary."""
    binary = Path(cygrpc.__file__).read_bytes()
    for key, _ in OPTIONS:
        assert re.search(rb"[^A-Za-z_.]" + re.escape(key.encode()) + rb"\0", binary), key
    # The name that many servers copy from one another; were it real, this test would prove nothing.
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in binary


def test_health_checks_are_never_refused_for_load() -> None:
    assert "grpc.max_concurrent_rpcs" not in dict(OPTIONS)


async def test_a_port_in_use_is_an_error_and_not_shared(running: Running) -> None:
    second = Server(Lifecycle(SERVICE_NAMES), max_request_s=1)
    with pytest.raises(OSError, match=f"127.0.0.1:{running.port}"):
        await second.start("127.0.0.1", running.port)


def _reflection(channel: grpc.aio.Channel) -> Any:
    """The type stubs know neither asyncio channels nor the methods."""
    return reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]


async def test_reflection_lists_the_services(running: Running) -> None:
    stub = _reflection(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = [r async for r in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {*SERVICE_NAMES, "grpc.health.v1.Health"} <= names


async def test_without_reflection_there_is_none() -> None:
    server = Server(Lifecycle(SERVICE_NAMES), max_request_s=1, has_reflection=False)
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = _reflection(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter([])):
                pass
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await server.stop()
