"""The application: its routes, its middleware, and the resources that they use."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from chatrpc_process.access.keys import load_keys, load_secret
from chatrpc_process.files.watched import POLL_S, Watched, watching
from chatrpc_process.reload_metrics import ReloadMetrics
from chatrpc_process.settings.loopback import is_loopback
from chatrpc_process.tls import Validity, watch_tls
from chatrpc_process.tracing.api import OFF, Tracer
from gateway_http.auth.middleware import Authentication
from gateway_http.config import Settings
from gateway_http.endpoints import ENDPOINTS
from gateway_http.http.bodies import Bodies
from gateway_http.http.cors import Cors
from gateway_http.http.endpoint import Endpoint, Handler, PathLabels
from gateway_http.http.host_check import HostCheck
from gateway_http.http.request_log import RequestLog
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.response_store import ResponseStore
from gateway_http.upstream.connection import Connection, read_tls, tls_validities
from gateway_http.upstream.hosted.models import HostingOptions
from gateway_http.upstream.hosted.process import Launch, ServiceLauncher
from gateway_http.upstream.registry import Entry, WholeService, hosted_models
from gateway_http.upstream.registry_file import RegistryFile
from gateway_http.upstream.router import Router

# The longest interval at which a stream that waits for a hosted model reports progress.
_PROGRESS_INTERVAL_S = 5.0

_Content = TypeVar("_Content")


@dataclass(frozen=True)
class Environment:
    """The parts of an application that are not settings, and that tests replace.

    Attributes:
        tracer: Records the spans of requests.
        endpoints: The endpoints that are served.
        poll_s: The interval in seconds at which files are checked for changes.
        clock: Returns seconds since an arbitrary time; limits per minute are measured by it.
        launch: Starts the processes of hosted models; None if they are services.
    """

    tracer: Tracer = OFF
    endpoints: Sequence[Endpoint] = ENDPOINTS
    poll_s: float = POLL_S
    clock: Callable[[], float] = time.monotonic
    launch: Launch | None = None


def build_app(settings: Settings, environment: Environment | None = None) -> Starlette:
    """Return the application.

    Its `state` has the attributes that `gateway_http.routes.request_state` reads, and these:

    - `draining`: once set, the gateway is not ready, and each response is the last of its
      connection;
    - `stopping`: once set, running requests are cancelled;
    - `identity`: the server's certificate; None without TLS.

    Raises:
        ConfigError: The registry or a file of keys or certificates cannot be read, or the store of
            responses cannot be used.
    """
    environment = environment or Environment()
    metrics, draining, stopping = Metrics(), asyncio.Event(), asyncio.Event()
    bodies = Bodies(settings.max_body_bytes, settings.body_timeout_s, stopping)
    metrics.body_bytes_capacity.set(bodies.max_bytes)
    metrics.body_bytes.set_function(lambda: bodies.num_bytes)
    metrics.bodies_preparing.set_function(lambda: bodies.num_jobs)
    keys = _watched(load_keys, settings.api_keys)
    upstream_secret = _watched(load_secret, settings.upstream_api_key_file)
    identity = None if settings.tls is None else watch_tls(settings.tls)
    registry = None
    if settings.registry is not None:
        registry = RegistryFile(settings.registry, environment.poll_s)
    validities = _upstream_validities(settings, registry)
    metrics.registry.register(
        ReloadMetrics(keys, upstream_secret, registry, identity=identity, others=validities)
    )
    store = _response_store(settings)
    endpoints = tuple(environment.endpoints)
    has_guard = keys is not None or identity is not None
    app = Starlette(
        routes=_routes((endpoint, endpoint.handler) for endpoint in endpoints),
        middleware=[
            Middleware(Cors, allow_origins=_allowed_origins(settings)),
            Middleware(
                RequestLog,
                metrics=metrics,
                labels=PathLabels(endpoints),
                draining=draining,
                tracer=environment.tracer,
            ),
            *_host_check(settings, settings.host, has_guard=has_guard),
            Middleware(
                Authentication,
                keys=keys,
                public_paths=_public_paths(endpoints),
                clock=environment.clock,
            ),
        ],
        exception_handlers={HTTPException: _unrouted},
        lifespan=_lifespan(
            _entries(settings) if registry is None else registry.entries,
            metrics,
            environment.launch
            or ServiceLauncher(settings.log_level, settings.log_format, settings.api_keys),
            _hosting_options(settings),
            bodies,
            store,
            registry,
            lambda: watching(keys, upstream_secret, identity, poll_s=environment.poll_s),
        ),
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.endpoints = endpoints
    app.state.bodies = bodies
    app.state.response_store = store
    app.state.upstream_secret = upstream_secret
    app.state.stopping = stopping
    app.state.draining = draining
    app.state.identity = identity
    return app


def build_admin_app(app: Starlette) -> Starlette:
    """Return the application of the admin port of `app`, which needs neither keys nor TLS."""
    settings: Settings = app.state.settings
    admin = Starlette(
        routes=_routes((endpoint, endpoint.admin_handler) for endpoint in app.state.endpoints),
        middleware=[
            Middleware(
                RequestLog,
                metrics=app.state.metrics,
                labels=PathLabels(app.state.endpoints),
                draining=app.state.draining,
            ),
            *_host_check(settings, settings.admin_host, has_guard=False),
        ],
        exception_handlers={HTTPException: _unrouted},
    )
    admin.state = app.state
    return admin


def _routes(handlers: Iterable[tuple[Endpoint, Handler | None]]) -> list[Route]:
    """Return a route for each endpoint with a handler. The last path parameter may have slashes."""
    return [
        Route(path.replace("}", ":path}"), handler, methods=[endpoint.method])
        for endpoint, handler in handlers
        if handler is not None
        for path in endpoint.paths
    ]


def _public_paths(endpoints: Iterable[Endpoint]) -> frozenset[str]:
    return frozenset(
        path for endpoint in endpoints if not endpoint.needs_key for path in endpoint.paths
    )


def _allowed_origins(settings: Settings) -> list[str] | None:
    """Return the allowed origins, or None if only the origins of localhost are allowed.

    By default, a gateway with keys allows every origin: a page needs a key to call it.
    """
    if settings.cors_allow_origins is None and settings.api_keys is not None:
        return ["*"]
    return settings.cors_allow_origins


def _host_check(settings: Settings, host: str, *, has_guard: bool) -> list[Middleware]:
    """Return the middleware that checks Host headers, or none if the listener does not need it.

    A listener on a loopback address without keys needs it: any page in a browser on this machine
    could call it.

    Args:
        settings: The gateway's settings, of which `allowed_hosts` is used.
        host: The address of the listener.
        has_guard: True if the listener requires keys or has a certificate. A browser rejects a
            certificate that does not match the name of the page's site.
    """
    if has_guard or not is_loopback(host):
        return []
    return [Middleware(HostCheck, allowed_hosts=settings.allowed_hosts)]


def _entries(settings: Settings) -> Sequence[Entry]:
    """Return the routing table of a gateway without a registry.

    Raises:
        ConfigError: Two models have the same name.
    """
    return hosted_models(settings.models) or [_whole_service(settings)]


def _hosting_options(settings: Settings) -> HostingOptions:
    memory = settings.models_memory
    return HostingOptions(
        budget_bytes=math.inf if memory is None else memory,
        idle_timeout_s=settings.model_idle_timeout_s,
        load_timeout_s=settings.model_load_timeout_s,
        max_waiting=settings.model_queue_size,
        progress_interval_s=min(_PROGRESS_INTERVAL_S, settings.sse_ping_interval_s),
    )


def _whole_service(settings: Settings) -> WholeService:
    """Return the entry of the only service. Use it if there is no registry."""
    ca = settings.upstream_ca
    own = settings.upstream_certificate, settings.upstream_key
    return WholeService(
        Connection(settings.upstream, tls=None if ca is None else read_tls(ca, *own))
    )


def _upstream_validities(
    settings: Settings, registry: RegistryFile | None
) -> Callable[[], Sequence[Validity]]:
    """Return a function that returns the validity periods of the certificates of services."""
    if registry is not None:
        return lambda: registry.validities
    if settings.upstream_ca is None:
        return tuple
    validities = tls_validities(settings.upstream_ca, settings.upstream_certificate)
    return lambda: validities


def _response_store(settings: Settings) -> ResponseStore | None:
    if settings.response_store is None:
        return None
    return ResponseStore(
        settings.response_store,
        settings.response_store_max_bytes,
        settings.response_store_max_age_s,
    )


def _watched(load: Callable[[Path], _Content], path: Path | None) -> Watched[_Content] | None:
    return None if path is None else Watched(lambda: load(path), path)


def _lifespan(
    entries: Sequence[Entry],
    metrics: Metrics,
    launch: Launch,
    hosting: HostingOptions,
    bodies: Bodies,
    store: ResponseStore | None,
    registry: RegistryFile | None,
    watching_files: Callable[[], AbstractAsyncContextManager[None]],
) -> Callable[[Starlette], AbstractAsyncContextManager[Mapping[str, Any]]]:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[Mapping[str, Any]]:
        router = Router(entries, metrics, launch, hosting)
        adopting = [] if registry is None else [asyncio.ensure_future(registry.watch(router.adopt))]
        async with watching_files():
            try:
                yield {"router": router}
            finally:
                for task in adopting:
                    task.cancel()
                bodies.close()
                if store is not None:
                    store.close()
                await router.close()

    return lifespan


async def _unrouted(request: Request, error: Exception) -> Response:
    """Handle Starlette's error for an unknown path, or for a method that a path lacks."""
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
