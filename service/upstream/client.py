"""Sends requests to an upstream and reads its responses."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from chatrpc_process.errors import ConfigError
from service.errors import UpstreamDown, UpstreamInvalidResponse
from service.upstream import events
from service.upstream.failures import AttemptFailed, Failures, failure_of_transport
from service.upstream.requests import UpstreamRequest
from service.upstream.wire import Completion, Model, ModelList, decoded
from service.upstream_url import api_url

# Other bodies than event streams. Log probabilities of a long prompt are the largest.
MAX_BODY_BYTES = 64 << 20
_MAX_ERROR_BYTES = 64 << 10
# Many servers close idle connections after 5 s. A request must not be sent at that moment.
_KEEP_ALIVE_S = 4.0
_WRITE_TIMEOUT_S = 30.0
# Time for the rest of a response after its last event, so that its connection can be used again.
_DRAIN_S = 0.2
PROBE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """The options of all connections to upstreams.

    Attributes:
        api_key: Returns the key that is sent; None if there is none.
        tls: Verifies the certificates of upstreams, and has the service's own certificate.
        connect_timeout_s: Maximum time to connect, in seconds.
        read_timeout_s: Maximum time without a byte of a response, in seconds.
    """

    api_key: Callable[[], str | None]
    tls: ssl.SSLContext
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 300.0


class ResponseTooLarge(UpstreamInvalidResponse):
    """A response of an upstream has more bytes than are read."""


class Upstream:
    """A service with OpenAI's API.

    Args:
        url: The URL of the API. If it has no path, `/v1` is added.

    Attributes:
        root: The URL without `/v1`, where some services have further endpoints.
        num_running: Number of requests in progress.
        accepted_ids: Other ids of the model that its responses may have, and the time until which
            each is accepted, in seconds of `time.monotonic()`.
        checking: Held while an id is checked.
    """

    def __init__(self, url: str, options: ConnectionOptions) -> None:
        self.url = api_url(url)
        self.root = self.url.removesuffix("/v1")
        self.num_running = 0
        self.accepted_ids: dict[str, float] = {}
        self.checking = asyncio.Lock()
        self._options = options
        self._client = _client(options)

    @property
    def label(self) -> str:
        """The host and port, for logs."""
        return urlsplit(self.url).netloc

    async def pieces(
        self, request: UpstreamRequest, failures: Failures, is_complete: Callable[[], bool]
    ) -> AsyncGenerator[Completion, None]:
        """Send a request and yield the pieces of its response: its chunks, or one completion.

        Closing the generator closes the connection, and so cancels the request at the upstream.

        Args:
            is_complete: Returns True if no piece is needed after those that were yielded.

        Raises:
            AttemptFailed: The upstream failed.
            ChatrpcError: The upstream rejects the request.
        """
        self.num_running += 1
        try:
            async with self._response("POST", self.url + request.path, request.body) as response:
                await _check(response, failures)
                if not request.is_streamed:
                    yield _checked(await _whole(response, failures), failures)
                    return
                async with aclosing(events.event_data(response)) as stream:
                    async for data in stream:
                        if data == events.DONE:
                            break
                        yield _checked(data, failures)
                        if is_complete():
                            break
                    await _drain(stream)
        finally:
            self.num_running -= 1

    async def post(self, url: str, body: bytes, failures: Failures) -> bytes:
        """Return the body of the response to a request that is not a generation.

        Raises:
            AttemptFailed: The upstream failed.
            ChatrpcError: The upstream rejects the request.
        """
        self.num_running += 1
        try:
            async with self._response("POST", url, body) as response:
                await _check(response, failures)
                return await _whole(response, failures)
        finally:
            self.num_running -= 1

    async def models(self, failures: Failures) -> tuple[list[Model], str]:
        """Return the upstream's models, and its name of its server.

        Raises:
            AttemptFailed: The upstream failed, or it has no list of models.
        """
        async with self._in_time(), self._response("GET", f"{self.url}/models") as response:
            await _check(response, failures)
            content = await _content(response, MAX_BODY_BYTES)
            return decoded(content, ModelList).data, response.headers.get("server", "")

    async def get(self, path: str) -> bytes | None:
        """Return the body at a path of `root`; None if there is none."""
        with suppress(AttemptFailed):
            async with self._in_time(), self._response("GET", self.root + path) as response:
                if response.status_code == httpx.codes.OK:
                    return await _content(response, _MAX_ERROR_BYTES)
        return None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    @asynccontextmanager
    async def _response(
        self, method: str, url: str, body: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request. The response is closed when the context is left."""
        headers = {} if body is None else {"content-type": "application/json"}
        key = self._options.api_key()
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        try:
            async with self._client.stream(method, url, content=body, headers=headers) as response:
                yield response
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise failure_of_transport(error) from error
        except UpstreamInvalidResponse as error:
            raise AttemptFailed(error, str(error.__cause__ or error)) from error

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Limit the duration of a probe."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                yield
        except TimeoutError:
            down = UpstreamDown("The upstream service did not respond in time.")
            raise AttemptFailed(down, f"no response within {PROBE_TIMEOUT_S} s") from None


def _client(options: ConnectionOptions) -> httpx.AsyncClient:
    """Return a client of the upstreams.

    Raises:
        ConfigError: The environment names a proxy that cannot be used.
    """
    try:
        return httpx.AsyncClient(
            headers={
                "user-agent": f"chatrpc/{version('chatrpc')}",
                "accept-encoding": "identity",  # compressed events would be delayed
            },
            # Cookies would link the requests of all callers, and bind them to one replica.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            verify=options.tls,
            timeout=httpx.Timeout(
                connect=options.connect_timeout_s,
                read=options.read_timeout_s,
                write=_WRITE_TIMEOUT_S,
                pool=None,
            ),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEEP_ALIVE_S
            ),
        )
    except (ImportError, ValueError) as error:
        raise ConfigError(f"The proxy of the environment cannot be used: {error}") from None


def tls_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context of the connections to upstreams.

    Args:
        ca: PEM file of the certificate authority; None means the public ones.
        certificate: PEM file of the service's own certificate.
        key: PEM file of its key.

    Raises:
        ConfigError: A file cannot be used.
    """
    try:
        context = httpx.create_ssl_context()
        if ca is not None:
            context = ssl.create_default_context(cafile=ca)
        if certificate is not None:
            # Without this argument, OpenSSL would ask for a passphrase at the terminal.
            context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError is a subclass
        names = ", ".join(str(path) for path in (ca, certificate, key) if path is not None)
        raise ConfigError(f"{names}: {getattr(error, 'reason', None) or error}") from None
    return context


async def _check(response: httpx.Response, failures: Failures) -> None:
    """Raise the exception for a response that is no success."""
    coding = response.headers.get("content-encoding", "identity")
    if response.status_code != httpx.codes.OK:
        raise failures.of_response(response, await _content(response, _MAX_ERROR_BYTES, cut=True))
    if coding != "identity":
        raise UpstreamInvalidResponse("The upstream service sent a compressed response.")


async def _whole(response: httpx.Response, failures: Failures) -> bytes:
    """Return the body of a response to a request.

    Raises:
        InvalidField: It is too large, and so it would be at every upstream.
    """
    try:
        return await _content(response, MAX_BODY_BYTES)
    except ResponseTooLarge as error:
        raise failures.too_large(MAX_BODY_BYTES) from error


async def _content(response: httpx.Response, max_bytes: int, *, cut: bool = False) -> bytes:
    """Return the body of a response.

    Args:
        cut: If True, a longer body is cut. Otherwise it is an error.
    """
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > max_bytes:
            if cut:
                break
            raise ResponseTooLarge("The upstream service sent a response that is too large.")
    return bytes(content[:max_bytes])


def _checked(data: bytes | str, failures: Failures) -> Completion:
    """Return a piece of a completion.

    Raises:
        UpstreamInvalidResponse: It is no completion.
        AttemptFailed: It is an error.
    """
    piece = decoded(data, Completion)
    error: Any = piece.error
    if error:
        raise failures.of_event(error)
    return piece


async def _drain(stream: AsyncGenerator[str, None]) -> None:
    """Read the rest of an event stream. If it does not end soon, its connection is closed."""
    with suppress(TimeoutError, UpstreamInvalidResponse, httpx.HTTPError):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in stream:
                pass
