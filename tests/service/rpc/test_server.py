"""The server's options, its port and its admin port."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # the compiled core
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import OPTIONS, Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.support.grpc_server import Running


def test_every_option_key_is_defined_in_grpc_core() -> None:
    """gRPC ignores an unknown key without a warning, so each key must be in its binary."""
    binary = Path(cygrpc.__file__).read_bytes()
    for key in [*dict(OPTIONS), "grpc.enable_channelz"]:
        found = re.finditer(re.escape(key.encode()) + rb"\0", binary)
        before = {binary[match.start() - 1 : match.start()] for match in found}
        assert any(not re.match(rb"[A-Za-z_.]", byte) for byte in before), key
    # Many servers set this key, which does not exist. If it were found, the check would be wrong.
    assert b"grpc.http2.min_recv_ping_interval_without_data_ms\0" not in binary


def test_server_options_do_not_limit_concurrent_calls() -> None:
    assert "grpc.max_concurrent_rpcs" not in dict(OPTIONS)


async def test_port_in_use_is_an_error(running: Running) -> None:
    second = Server(Lifecycle(SERVICE_NAMES), request_timeout_s=1)
    with pytest.raises(OSError, match=f"127.0.0.1:{running.port}"):
        await second.start("127.0.0.1", running.port)


def _reflection(channel: grpc.aio.Channel) -> Any:
    """Return an untyped stub: the type stubs have neither asyncio channels nor the methods."""
    return reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]


def _channelz(channel: grpc.aio.Channel) -> Any:
    return channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]  # as above


async def test_reflection_lists_the_services(running: Running) -> None:
    stub = _reflection(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [response] = [r async for r in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in response.list_services_response.service}
    assert {*SERVICE_NAMES, "grpc.health.v1.Health"} <= names


async def test_reflection_is_unimplemented_if_disabled() -> None:
    server = Server(Lifecycle(SERVICE_NAMES), request_timeout_s=1, has_reflection=False)
    port = await server.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = _reflection(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ServerReflectionInfo(iter([])):
                pass
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    await server.stop()


@asynccontextmanager
async def administered(**options: Any) -> AsyncIterator[tuple[int, grpc.aio.Channel]]:
    """Run a server. Yield its main port, and a channel to its admin port."""
    server = Server(Lifecycle(SERVICE_NAMES), request_timeout_s=1, **options)
    port = await server.start("127.0.0.1", 0)
    admin_port = await server.start_admin("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{admin_port}") as channel:
        yield port, channel
    await server.stop()


async def test_admin_port_with_channelz_lists_connections() -> None:
    async with (
        administered(has_channelz=True) as (port, channel),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as client,
    ):
        check: Any = health_pb2_grpc.HealthStub(client).Check  # type: ignore[attr-defined]  # as above
        await check(health_pb2.HealthCheckRequest(service="liveness"))
        stub = _channelz(channel)
        servers = (await stub.GetServers(channelz_pb2.GetServersRequest())).server
        ports = []
        for server in servers:
            of_server = channelz_pb2.GetServerSocketsRequest(server_id=server.ref.server_id)
            for ref in (await stub.GetServerSockets(of_server)).socket_ref:
                of_socket = channelz_pb2.GetSocketRequest(socket_id=ref.socket_id)
                ports.append((await stub.GetSocket(of_socket)).socket.local.tcpip_address.port)
        assert len(servers) == 2
        assert port in ports
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # not on the main port
            await _channelz(client).GetServers(channelz_pb2.GetServersRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_admin_port_without_channelz_is_unimplemented() -> None:
    async with administered() as (_, channel):
        stub = _channelz(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetServers(channelz_pb2.GetServersRequest())
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("has_channelz", [False, True])
async def test_admin_port_reflection_lists_its_services(has_channelz: bool) -> None:
    async with administered(has_channelz=has_channelz) as (_, channel):
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = _reflection(channel)
        [response] = [r async for r in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in response.list_services_response.service}
    assert not names & set(SERVICE_NAMES)
    assert ("grpc.channelz.v1.Channelz" in names) is has_channelz
