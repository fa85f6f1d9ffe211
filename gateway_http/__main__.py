"""Run the gateway: `python -m gateway_http --upstream host:port`."""

import asyncio
import signal
import socket
import sys

import structlog
import uvicorn
from starlette.applications import Starlette

from chatrpc_process import logs
from chatrpc_process.settings import ConfigError
from chatrpc_process.tracing import Tracer, make_tracer
from chatrpc_process.watchdog import watched_loop
from gateway_http.app import build_app
from gateway_http.config import Settings
from gateway_http.http_protocol import HttpProtocol

# How long the last answers may take to reach their clients, once the grace is over.
_LAST_WORDS_S = 2
_TICK_S = 0.1

_log = structlog.get_logger("gateway_http")


def main() -> None:
    try:
        settings = Settings.load(sys.argv[1:])
        tracer = make_tracer(settings.otlp_endpoint, "chatrpc-gateway")
        listener = _listen(settings)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    logs.configure(settings.log_level, settings.log_format)
    host, port = listener.getsockname()[:2]
    _exit_zero_on_signals()
    _log.info("listening", host=host, port=port, upstream=settings.upstream)
    try:
        _server(settings, tracer).run(sockets=[listener])
    finally:
        tracer.close()


def _listen(settings: Settings) -> socket.socket:
    """Bind before anything else starts, so that a taken port is one line and not a half-start."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from None


class _Server(uvicorn.Server):
    """Tells who routes to it before it stops, and ends what outlasts the grace with an answer,
    where uvicorn would close its door at once and cancel without a word.
    """

    def __init__(self, config: uvicorn.Config, app: Starlette, settings: Settings) -> None:
        super().__init__(config)
        self._state = app.state
        self._settings = settings

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        with watched_loop(self._settings.loop_timeout_s):
            await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop, settings = asyncio.get_running_loop(), self._settings
        _log.info("draining", delay_s=settings.drain_delay_s, grace_s=settings.shutdown_grace_s)
        self._state.draining.set()
        until_s = loop.time() + settings.drain_delay_s
        # uvicorn's handler of a second SIGINT sets `force_exit`, and tells nobody.
        while loop.time() < until_s and not self.force_exit:  # noqa: ASYNC110
            await asyncio.sleep(min(_TICK_S, until_s - loop.time()))
        loop.call_later(settings.shutdown_grace_s, self._state.stopping.set)
        await super().shutdown(sockets)


def _server(settings: Settings, tracer: Tracer) -> uvicorn.Server:
    app = build_app(settings, tracer)
    return _Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http=HttpProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=settings.shutdown_grace_s + _LAST_WORDS_S,
        ),
        app,
        settings,
    )


def _exit_zero_on_signals() -> None:
    """uvicorn drains on a signal and then raises it again, for whoever had handled it before."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    main()
