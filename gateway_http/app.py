"""The application: routes, what surrounds them, and the service behind them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatrpc_process.tracing import OFF, Tracer
from gateway_http.access import Access
from gateway_http.config import Settings
from gateway_http.cors import Cors
from gateway_http.endpoints import ENDPOINTS
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.routes import document, models, probes, tokens
from gateway_http.routes.chat import CHAT
from gateway_http.routes.completions import COMPLETIONS
from gateway_http.routes.generation import Generation
from gateway_http.upstreams import Upstream


def build_app(settings: Settings, tracer: Tracer = OFF) -> Starlette:
    """The application. Its `state.draining`, once set, makes it unready, and `state.stopping` ends
    whatever still runs.
    """
    metrics, stopping = Metrics(), asyncio.Event()
    app = Starlette(
        routes=_routes(settings, metrics, stopping),
        middleware=[
            Middleware(Cors, allow_origins=settings.cors_allow_origins),
            Middleware(Access, metrics=metrics, tracer=tracer),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=_lifespan(settings),
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.stopping = stopping
    app.state.draining = asyncio.Event()
    return app


def _routes(settings: Settings, metrics: Metrics, stopping: asyncio.Event) -> list[Route]:
    """Each endpoint stands bare as well: some clients' base URL lacks the `/v1`."""
    handlers: dict[str, Any] = {
        "create_chat_completion": Generation(CHAT, settings, metrics, stopping),
        "create_completion": Generation(COMPLETIONS, settings, metrics, stopping),
        "list_models": models.list_models,
        "retrieve_model": models.retrieve_model,
        "tokenize": tokens.tokenize,
        "detokenize": tokens.detokenize,
        **dict.fromkeys(("readyz", "ready", "health", "ping"), probes.readyz),
        **dict.fromkeys(("healthz", "live"), probes.healthz),
        "metrics": probes.metrics,
        "version": probes.version,
        "openapi": document.openapi,
        "docs": document.docs,
    }
    return [
        Route(
            prefix + endpoint.path.replace("}", ":path}"),
            handlers[endpoint.name],
            methods=[endpoint.method],
        )
        for endpoint in ENDPOINTS
        for prefix in ("/v1", "")
    ]


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """What the service is called under; the files are read once, at the start."""
    if settings.upstream_ca is None:
        return None
    certificate, key = settings.upstream_certificate, settings.upstream_key
    return grpc.ssl_channel_credentials(
        settings.upstream_ca.read_bytes(),
        key.read_bytes() if key else None,
        certificate.read_bytes() if certificate else None,
    )


def _lifespan(
    settings: Settings,
) -> Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        upstream = Upstream(settings.upstream, _credentials(settings))
        try:
            yield {"upstream": upstream}
        finally:
            await upstream.close()

    return lifespan


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code != 405:
        raise ApiError(404, f"Invalid URL ({request.method} {request.url.path})")
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=error.headers)
    raise ApiError(
        405,
        f"Method not allowed ({request.method} {request.url.path})",
        code="method_not_supported",
        headers=error.headers,
    )
