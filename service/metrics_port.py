"""The HTTP port that Prometheus scrapes, `GET /metrics`, within limits."""

import asyncio
from collections.abc import Callable, Iterable
from io import BytesIO
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app

_PATH = "/metrics"
# An installation has far fewer Prometheus servers than this.
_MAX_CONNECTIONS = 32
_MAX_HEAD_BYTES = 8 << 10
# Maximum duration in seconds. A response of 50 KB takes about 10 ms.
_CONNECTION_TIMEOUT_S = 10.0

_StartResponse = Callable[[str, list[tuple[str, str]]], object]


class MetricsPort:
    """Serves the metrics of a registry. Each connection has one request.

    Args:
        max_connections: Maximum number of connections. If there are more, the oldest is closed. So
            clients that connect and send nothing cannot block a scrape.
        timeout_s: Maximum duration of a connection in seconds.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        max_connections: int = _MAX_CONNECTIONS,
        timeout_s: float = _CONNECTION_TIMEOUT_S,
    ) -> None:
        self._max_connections = max_connections
        self._timeout_s = timeout_s
        self._server = SimpleNamespace(
            base_environ={"SCRIPT_NAME": ""}, get_app=lambda: _application(registry)
        )
        self._listener: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], None] = {}  # the oldest first

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port, which the system chose if `port` is 0.

        Raises:
            OSError: The address cannot be bound.
        """
        try:
            self._listener = await asyncio.start_server(
                self._serve, host, port, limit=_MAX_HEAD_BYTES
            )
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None
        bound: int = self._listener.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the listener and every connection. Does nothing if `start` was not called."""
        if self._listener is not None:
            self._listener.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # this is a coroutine
        self._make_room()
        self._connections[task] = None
        try:
            async with asyncio.timeout(self._timeout_s):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await asyncio.to_thread(self._respond, head))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has left or sent no request
        except asyncio.LimitOverrunError:
            pass  # the head of the request is too large for a scrape
        finally:
            writer.transport.abort()
            self._connections.pop(task, None)

    def _make_room(self) -> None:
        if len(self._connections) == self._max_connections:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()

    def _respond(self, head: bytes) -> bytes:
        """Return the response to a request: the metrics, or an error."""
        handler = _Handler(head, ("", 0), self._server)  # type: ignore[arg-type]  # see _Handler
        return handler.wfile.getvalue()


class _Handler(WSGIRequestHandler):
    """The handler of the standard library, which reads and writes bytes instead of a socket."""

    wfile: BytesIO

    def setup(self) -> None:
        self.rfile = BytesIO(self.request)
        self.wfile = BytesIO()

    def finish(self) -> None: ...

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002  # its name there


def _application(registry: CollectorRegistry) -> Any:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: _StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != _PATH:
            return _plain("404 Not Found", f"Only {_PATH} is served here.\n", start_response)
        method = environ["REQUEST_METHOD"]
        if method not in ("GET", "HEAD"):
            return _plain("405 Method Not Allowed", "Only GET and HEAD.\n", start_response)

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            heading.append((status, headers))

        heading: list[tuple[str, list[tuple[str, str]]]] = []
        (body,) = metrics({**environ, "REQUEST_METHOD": "GET"}, start)
        ((status, headers),) = heading
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return [body] if method == "GET" else []

    return application


def _plain(status: str, text: str, start_response: _StartResponse) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), ("Allow", "GET, HEAD")])
    return [text.encode()]
