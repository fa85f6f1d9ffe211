"""Endpoints for monitoring: liveness, readiness, metrics and the version."""

from importlib.metadata import version as version_of

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from gateway_http.http.request_io import json_response
from gateway_http.protocol.error import ApiError, PermissionDenied, ServiceUnavailable
from gateway_http.protocol.response import Version
from gateway_http.routes.request_state import (
    caller_of,
    is_draining,
    metrics_of,
    router_of,
    settings_of,
)

# It is less than the period of a probe. A service that takes longer to respond is not ready.
_READY_TIMEOUT_S = 2

VERSION = version_of("chatrpc")


async def healthz(_: Request) -> Response:
    """Return 200. A response shows that the event loop runs."""
    return Response("ok\n", media_type="text/plain")


async def readyz(request: Request) -> Response:
    """Return 200 if the gateway is not shutting down and at least one service is ready."""
    if is_draining(request):
        raise ServiceUnavailable("The gateway is shutting down.")
    if not await router_of(request).is_ready(_READY_TIMEOUT_S):
        raise ServiceUnavailable("The model service is not ready.")
    return Response("ok\n", media_type="text/plain")


async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus's format."""
    return Response(metrics_of(request).render(), media_type=CONTENT_TYPE_LATEST)


async def metrics_for_operators(request: Request) -> Response:
    """Return the metrics on the port of the API, if there is no admin port.

    They contain the names of all models, so a key that permits all models is needed.
    """
    if settings_of(request).admin_port is not None:
        raise ApiError(404, "Metrics are served on the admin port.")
    if not caller_of(request).may_use_all_models:
        raise PermissionDenied("Metrics need an API key that may use all models.")
    return await metrics(request)


async def version(_: Request) -> Response:
    """Return the version of the gateway."""
    return json_response(Version(VERSION))
