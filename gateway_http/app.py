"""The application: routes, what surrounds them, and the service behind them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatrpc_process.access.keys import load_keys, load_secret
from chatrpc_process.files.watched import Watched, watching
from chatrpc_process.reload_metrics import ReloadMetrics
from chatrpc_process.settings.loopback import is_loopback
from chatrpc_process.tls import Validity, watch_tls
from chatrpc_process.tracing.api import OFF, Tracer
from gateway_http.auth.middleware import Authentication
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.http.bodies import Bodies
from gateway_http.http.cors import Cors
from gateway_http.http.host_check import HostCheck
from gateway_http.http.request_log import Access
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.routes import document, index, models, probes, tokens
from gateway_http.routes.chat import CHAT
from gateway_http.routes.completions import COMPLETIONS
from gateway_http.routes.generation import Generation
from gateway_http.upstream.connection import Connection, read_tls, tls_validities
from gateway_http.upstream.registry import Entry
from gateway_http.upstream.registry_file import RegistryFile
from gateway_http.upstream.router import Router

_Content = TypeVar("_Content")


def build_app(settings: Settings, tracer: Tracer = OFF) -> Starlette:
    """Return the application. Its `state` has

    - `draining`: once set, it is not ready, and each response is the last of its connection;
    - `stopping`: once set, all running requests are ended;
    - `bodies`: the bodies of requests in progress;
    - `identity`: the server's certificate, if it serves under TLS.

    Raises:
        ConfigError: The registry or a file of keys or certificates cannot be read.
    """
    metrics, draining, stopping = Metrics(), asyncio.Event(), asyncio.Event()
    bodies = Bodies(settings, stopping)
    metrics.body_bytes_capacity.set(bodies.max_bytes)
    metrics.body_bytes.set_function(lambda: bodies.num_bytes)
    metrics.bodies_preparing.set_function(lambda: bodies.num_jobs)
    keys = _watched(load_keys, settings.api_keys)
    upstream_secret = _watched(load_secret, settings.upstream_api_key_file)
    identity = None if settings.tls is None else watch_tls(settings.tls)
    registry = None if settings.registry is None else RegistryFile(settings.registry)
    validities = _upstream_validities(settings, registry)
    metrics.registry.register(
        ReloadMetrics(keys, upstream_secret, registry, identity=identity, others=validities)
    )
    app = Starlette(
        routes=_routes(settings, metrics, stopping, bodies),
        middleware=[
            Middleware(Cors, allow_origins=_allowed_origins(settings)),
            Middleware(
                Access,
                metrics=metrics,
                draining=draining,
                tracer=tracer,
                upstream_secret=upstream_secret,
            ),
            *_host_check(settings, settings.host, asks=keys is not None or identity is not None),
            Middleware(Authentication, keys=keys),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=_lifespan(settings, metrics, bodies, registry, keys, upstream_secret, identity),
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.bodies = bodies
    app.state.stopping = stopping
    app.state.draining = draining
    app.state.identity = identity
    return app


def build_admin_app(app: Starlette) -> Starlette:
    """Probes and metrics of `app` alone: on a port of their own they need neither key nor TLS."""
    handlers = _probes()
    settings: Settings = app.state.settings
    admin = Starlette(
        routes=[
            Route(path, handlers[endpoint.name])
            for endpoint in ENDPOINTS
            if endpoint.name in handlers
            for path in endpoint.paths
        ],
        middleware=[
            Middleware(Access, metrics=app.state.metrics, draining=app.state.draining),
            *_host_check(settings, settings.admin_host, asks=False),
        ],
        exception_handlers={HTTPException: _unrouted},
    )
    admin.state = app.state
    return admin


def _allowed_origins(settings: Settings) -> list[str] | None:
    """Any page may call a gateway with keys: a page that has a key could call it from anywhere."""
    if settings.cors_allow_origins is None and settings.api_keys is not None:
        return ["*"]
    return settings.cors_allow_origins


def _host_check(settings: Settings, host: str, *, asks: bool) -> list[Middleware]:
    """The check of a listener at `host`: only where a browser on this machine is all it needs.

    Args:
        asks: Whether the listener asks for keys or has a certificate, which other names do not fit.
    """
    if asks or not is_loopback(host):
        return []
    return [Middleware(HostCheck, allowed_hosts=settings.allowed_hosts)]


def _probes() -> dict[str, Any]:
    return {
        **dict.fromkeys(("readyz", "ready", "health", "ping"), probes.readyz),
        **dict.fromkeys(("healthz", "live"), probes.healthz),
        "metrics": probes.metrics,
    }


def _routes(
    settings: Settings, metrics: Metrics, stopping: asyncio.Event, bodies: Bodies
) -> list[Route]:
    handlers: dict[str, Any] = {
        "create_chat_completion": Generation(CHAT, settings, metrics, stopping, bodies),
        "create_completion": Generation(COMPLETIONS, settings, metrics, stopping, bodies),
        "list_models": models.list_models,
        "retrieve_model": models.retrieve_model,
        "tokenize": tokens.tokenize,
        "detokenize": tokens.detokenize,
        **_probes(),
        "metrics": probes.metrics_elsewhere
        if settings.admin_port is not None
        else probes.metrics_for_operators,
        "index": index.index,
        "version": probes.version,
        "openapi": document.openapi,
        "docs": document.docs,
    }
    return [
        Route(
            path.replace("}", ":path}"),
            handlers[endpoint.name],
            methods=[endpoint.method],
        )
        for endpoint in ENDPOINTS
        for path in endpoint.paths
    ]


def _upstream(settings: Settings) -> Entry:
    """The one service, where there is no registry."""
    ca = settings.upstream_ca
    own = settings.upstream_certificate, settings.upstream_key
    return Entry(
        Connection(settings.upstream, tls=None if ca is None else read_tls(ca, *own)),
    )


def _upstream_validities(
    settings: Settings, registry: RegistryFile | None
) -> Callable[[], Sequence[Validity]]:
    """Return a function that says when the certificates of calls to services are valid."""
    if registry is not None:
        return lambda: registry.validities
    if settings.upstream_ca is None:
        return tuple
    validities = tls_validities(settings.upstream_ca, settings.upstream_certificate)
    return lambda: validities


def _watched(load: Callable[[Path], _Content], path: Path | None) -> Watched[_Content] | None:
    return None if path is None else Watched(lambda: load(path), path)


def _lifespan(
    settings: Settings,
    metrics: Metrics,
    bodies: Bodies,
    registry: RegistryFile | None,
    *files: Watched[Any] | None,
) -> Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]:
    entries = [_upstream(settings)] if registry is None else registry.entries

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        router = Router(entries, metrics)
        adopting = [] if registry is None else [asyncio.ensure_future(registry.watch(router.adopt))]
        async with watching(*files):
            try:
                yield {"router": router}
            finally:
                for task in adopting:
                    task.cancel()
                bodies.close()
                await router.close()

    return lifespan


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    if not isinstance(error, HTTPException):
        raise error
    if error.status_code != 405:
        message = f"Invalid URL ({request.method} {request.url.path})"
        raise ApiError(404, message, reason="UNKNOWN_PATH")
    if request.method == "OPTIONS":
        return Response(status_code=204, headers=error.headers)
    raise ApiError(
        405,
        f"Method not allowed ({request.method} {request.url.path})",
        code="method_not_supported",
        headers=error.headers,
    )
