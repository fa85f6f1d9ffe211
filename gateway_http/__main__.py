"""Run the gateway: `python -m gateway_http --upstream host:port`."""

import asyncio
import signal
import socket
import sys

import structlog
import uvicorn

from chatrpc_process import logs
from chatrpc_process.settings import ConfigError
from gateway_http.app import build_app
from gateway_http.config import Settings
from gateway_http.http_protocol import HttpProtocol

# How long the last answers may take to reach their clients, once the grace is over.
_LAST_WORDS_S = 2

_log = structlog.get_logger("gateway_http")


def main() -> None:
    try:
        settings = Settings.load(sys.argv[1:])
        server = _server(settings)
        listener = _listen(settings)
    except (ConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  # logs are not set up yet
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    logs.configure(settings.log_level, settings.log_format)
    host, port = listener.getsockname()[:2]
    models = {"registry": str(settings.registry)} if settings.registry else None
    _log.info("listening", host=host, port=port, **(models or {"upstream": settings.upstream}))
    _exit_zero_on_signals()
    server.run(sockets=[listener])


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
    """Ends what outlasts the grace with an answer, where uvicorn would cancel without a word."""

    def __init__(self, config: uvicorn.Config, stopping: asyncio.Event, grace_s: float) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._grace_s = grace_s

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(self._grace_s, self._stopping.set)
        await super().shutdown(sockets)


def _server(settings: Settings) -> uvicorn.Server:
    app = build_app(settings)
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
        app.state.stopping,
        settings.shutdown_grace_s,
    )


def _exit_zero_on_signals() -> None:
    """uvicorn drains on a signal and then raises it again, for whoever had handled it before."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    main()
