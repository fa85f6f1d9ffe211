"""The HTTP server: its listeners, its limits and its shutdown."""

import asyncio
import math
import socket
import ssl
import sys

import structlog
import uvicorn
from starlette.applications import Starlette
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import ServerState

from chatrpc_process.tls import watched_context
from chatrpc_process.watchdog import watched_loop
from gateway_http.app import Environment, build_admin_app, build_app
from gateway_http.config import Settings
from gateway_http.http.connections import Connections
from gateway_http.http.http11 import HttpProtocol, Limits
from gateway_http.http.request_record import EarlyRejections

# The time in seconds for error responses to requests that are cancelled after the grace.
_CANCELLED_RESPONSES_S = 2
_TICK_S = 0.1
_BACKLOG = 2048

# A client whose host has vanished sends nothing. After 30 s of silence, the kernel probes it, and
# closes the connection 30 s later. It also closes a connection on which nothing is acknowledged for
# a minute, or for twice the write timeout: `ClientTransport` must notice first, and count it.
# Connections inherit these options from their listener. macOS has only some of them.
_TCP_OPTIONS = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
_SHORTEST_USER_TIMEOUT_S = 60
_LONGEST_USER_TIMEOUT_S = 86_400  # in milliseconds, it fits a C int

_log = structlog.get_logger(__name__)


class Server(uvicorn.Server):
    """Serves the API on one port and, if configured, probes and metrics on the admin port.

    On shutdown it first reports that it is not ready, while it still accepts requests. Requests
    that run longer than the grace get an error response. uvicorn would close its listener at once,
    and cancel requests without a response.

    Raises:
        ConfigError: A file that the settings name cannot be read.
    """

    def __init__(self, settings: Settings, environment: Environment | None = None) -> None:
        self._settings = settings
        self._app = build_app(settings, environment)
        self._rejections = EarlyRejections(self._app.state.metrics)
        identity = self._app.state.identity
        on_failed_handshake = self._rejections.note_failed_handshake
        self._tls = None if identity is None else watched_context(identity, on_failed_handshake)
        super().__init__(_config(self._app, settings))
        self._admin_config = _config(build_admin_app(self._app), settings)
        self._admin_state = ServerState()
        self._admin_server: asyncio.Server | None = None
        self._admin_listener: socket.socket | None = None
        self._limits = Limits(
            head_timeout_s=settings.head_timeout_s,
            body_timeout_s=settings.body_timeout_s,
            write_timeout_s=settings.write_timeout_s,
            max_connections=settings.max_connections,
        )

    def bind(self) -> socket.socket:
        """Bind the addresses. Call this first: if a port is in use, nothing has been started yet.

        Returns:
            The listener for `run` and `startup`.

        Raises:
            OSError: An address cannot be bound.
        """
        settings = self._settings
        listener = _listen(settings.host, settings.port, settings.write_timeout_s)
        if settings.admin_port is not None:
            self._admin_listener = _listen(
                settings.admin_host, settings.admin_port, settings.write_timeout_s
            )
        return listener

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """The address of the admin port; None if it is not bound."""
        if self._admin_listener is None:
            return None
        host, port = self._admin_listener.getsockname()[:2]
        return host, port

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with watched_loop(self._settings.loop_timeout_s):
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            sys.exit(STARTUP_FAILURE)
        self.servers = [
            await self._serve_on(listener, self.config, self.server_state, self._tls)
            for listener in sockets or ()
        ]
        if self._admin_listener is not None:
            self._admin_config.load()
            self._admin_server = await self._serve_on(
                self._admin_listener, self._admin_config, self._admin_state, None
            )
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down. The admin port is closed last, and reports until then that it is not ready."""
        loop, settings = asyncio.get_running_loop(), self._settings
        _log.info("draining", delay_s=settings.drain_delay_s, timeout_s=settings.drain_timeout_s)
        self._app.state.draining.set()
        until_s = loop.time() + settings.drain_delay_s
        # uvicorn's handler of a second SIGINT only sets `force_exit`.
        while loop.time() < until_s and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(min(_TICK_S, until_s - loop.time()))
        loop.call_later(settings.drain_timeout_s, self._app.state.stopping.set)
        await super().shutdown(sockets)
        if self._admin_server is not None:
            self._admin_server.close()
            for connection in list(self._admin_state.connections):
                connection.shutdown()

    async def _serve_on(
        self,
        listener: socket.socket,
        config: uvicorn.Config,
        state: ServerState,
        tls: ssl.SSLContext | None,
    ) -> asyncio.Server:
        connections = Connections(
            self._limits.max_connections, self._settings.max_connections_per_address
        )

        def protocol() -> HttpProtocol:
            return HttpProtocol(
                self._limits,
                self._rejections,
                connections,
                config=config,
                server_state=state,
                app_state=self.lifespan.state,
            )

        return await asyncio.get_running_loop().create_server(
            protocol,
            sock=listener,
            backlog=_BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self._limits.head_timeout_s,
            ssl_shutdown_timeout=None if tls is None else self._limits.write_timeout_s,
        )


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=HttpProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_timeout_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s) + _CANCELLED_RESPONSES_S,
    )


def _listen(host: str, port: int, write_timeout_s: float) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    user_timeout_s = min(
        max(_SHORTEST_USER_TIMEOUT_S, 2 * write_timeout_s), _LONGEST_USER_TIMEOUT_S
    )
    options = _TCP_OPTIONS | {"TCP_USER_TIMEOUT": int(user_timeout_s * 1000)}
    for name, value in options.items():
        if hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return listener
