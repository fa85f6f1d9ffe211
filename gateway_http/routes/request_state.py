"""Typed access to the objects that the application and its middleware give to requests."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from chatrpc_process.files.watched import Watched
from gateway_http.auth.caller import Caller
from gateway_http.config import Settings
from gateway_http.http.bodies import Bodies
from gateway_http.http.endpoint import Endpoint
from gateway_http.http.request_io import while_connected
from gateway_http.http.request_log import RequestContext
from gateway_http.metrics import Metrics
from gateway_http.upstream.call_metadata import CallMetadata
from gateway_http.upstream.router import Router

_Result = TypeVar("_Result")


def settings_of(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def metrics_of(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


def endpoints_of(request: Request) -> tuple[Endpoint, ...]:
    endpoints: tuple[Endpoint, ...] = request.app.state.endpoints
    return endpoints


def bodies_of(request: Request) -> Bodies:
    bodies: Bodies = request.app.state.bodies
    return bodies


def is_draining(request: Request) -> bool:
    """Return whether the gateway is shutting down. Until it exits it may still accept requests."""
    draining: asyncio.Event = request.app.state.draining
    return draining.is_set()


def router_of(request: Request) -> Router:
    router: Router = request.state.router
    return router


def caller_of(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller


def context_of(request: Request) -> RequestContext:
    context: RequestContext = request.state.context
    return context


def call_metadata_of(request: Request) -> CallMetadata:
    """Return the metadata of the calls to services that the request makes."""
    secret: Watched[str] | None = request.app.state.upstream_secret
    return CallMetadata.of_request(
        request.headers,
        context_of(request).request_id,
        caller_of(request).info,
        None if secret is None else secret.value,
    )


async def run_while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of `work`. Cancel `work` if the client disconnects or the gateway stops.

    Raises:
        ClientDisconnect: The client has disconnected.
        ServiceUnavailable: The gateway is stopping.
    """
    stopping: asyncio.Event = request.app.state.stopping
    return await while_connected(request.receive, stopping, work)
