"""What machines ask: is it alive, is it ready, what has it counted."""

import asyncio
from importlib.metadata import version as version_of

import grpc
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.clients import json_response
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.protocol.response import Version
from gateway_http.upstreams import Upstream

# Less than the period of a probe; a service that takes longer to say so is not ready.
_READY_TIMEOUT_S = 2

VERSION = version_of("chatrpc")


async def healthz(_: Request) -> Response:
    """The event loop turns."""
    return Response("ok\n", media_type="text/plain")


async def readyz(request: Request) -> Response:
    """The service behind the gateway takes requests, and so does the gateway."""
    upstream: Upstream = request.state.upstream
    draining: asyncio.Event = request.app.state.is_draining
    try:
        is_ready = not draining.is_set() and await upstream.is_ready(_READY_TIMEOUT_S)
    except grpc.aio.AioRpcError:
        is_ready = False
    if is_ready:
        return Response("ok\n", media_type="text/plain")
    raise ApiError(
        503,
        "The model service is not ready.",
        kind="service_unavailable_error",
        code="service_unavailable",
        headers={"retry-after": "1"},
    )


async def metrics(request: Request) -> Response:
    counted: Metrics = request.app.state.metrics
    return Response(counted.render(), media_type=CONTENT_TYPE_LATEST)


async def version(_: Request) -> Response:
    return json_response(Version(VERSION))
