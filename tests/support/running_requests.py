"""Requests that run when the engine of a service fails, and their errors on both wires."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2

from tests.fakes.wait import failsafe
from tests.support.programs import Client, Gateway, RealService, body, http_client
from tests.support.raw_http import RawClient
from tests.support.rpc_errors import rpc_error

LONG = 50_000  # tokens of 2 ms each; no test waits for the last
HIDDEN = "secret words"  # the error of the engine; clients do not get it


@dataclass
class RunningRequests:
    """A stream over gRPC, a stream and a whole completion over HTTP, and a health watch.

    Attributes:
        client: The client of the stream over gRPC.
    """

    client: Client
    _stream: Any
    _http: RawClient
    _whole: httpx.AsyncClient
    _waiting: "asyncio.Task[httpx.Response]"
    _watch: Any

    async def fail_as_engine_dead(self, service: RealService) -> None:
        """Check that all requests fail with ENGINE_DEAD, that the service ends, and that later
        requests are rejected.
        """
        error = await rpc_error(self._stream)
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")
        assert HIDDEN not in repr(error)
        events = await self._http.read_until(b"[DONE]")
        assert b'"server_error"' in events
        assert HIDDEN.encode() not in events
        assert (await self._waiting).status_code == 500
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        assert (await self._watch.read()).status == not_serving
        assert await service.ended() == 1
        after = await self._whole.post("/v1/chat/completions", json=body())
        assert after.status_code == 503
        assert "retry-after" in after.headers


@asynccontextmanager
async def running_requests(
    service: RealService, gateway: Gateway
) -> AsyncIterator[RunningRequests]:
    """Yield requests that have begun to run. The gateway is one of the service."""
    async with (
        Client(service.target) as client,
        RawClient(gateway.url) as http,
        http_client(gateway.url) as whole,
    ):
        watch = client.health.Watch(health_pb2.HealthCheckRequest(service="liveness"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        stream = client.stream(num_tokens=LONG)
        await anext(aiter(stream))
        await http.post(body(num_tokens=LONG, stream=True))
        await http.read_until(b'"content":"a')
        waiting = asyncio.create_task(
            whole.post("/v1/chat/completions", json=body(num_tokens=LONG))
        )
        async with failsafe():
            while (await service.metrics())["chatrpc_sequences_running"] < 3:
                await asyncio.sleep(0.01)
        yield RunningRequests(client, stream, http, whole, waiting, watch)
