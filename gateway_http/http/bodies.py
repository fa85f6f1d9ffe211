"""The bodies of requests, read and decoded within bounds on what all of them take together; and
large responses, converted off the event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request

from chatrpc_process.fairness.capacity import SharedCapacity
from chatrpc_process.fairness.pool import FairPool, PoolFull
from gateway_http.auth.caller import Caller
from gateway_http.config import Settings
from gateway_http.http.content_coding import decompress, too_large
from gateway_http.http.content_type import check_content_type, content_codings
from gateway_http.http.request_io import while_connected
from gateway_http.protocol.elements import most_elements
from gateway_http.protocol.error import ApiError

# A body takes three to five times its size, as long as its request lasts: with the default of
# `--max-body-bytes`, which makes this 64 MiB, the gateway stays within 512 MiB.
_MAX_LARGEST_BODIES = 8
# Larger ones are decoded on a thread, and count as in progress.
SMALL_BYTES = 32 << 10
# The largest that the threads for small ones decode.
_MEDIUM_BYTES = 256 << 10
# Decoding a key or a value takes longer than so many bytes of text. So what is decoded on the event
# loop takes a millisecond or two, whatever it contains.
_BYTES_PER_ELEMENT = 16
# Each has been read whole.
_MAX_JOBS = 512
# Converting a response takes longer than decoding so many times its bytes: log probabilities, of
# which large ones consist, are 20 bytes each.
_EFFORT_OF_RESPONSES = 4
# What has been computed is sent: there are as many at most as requests.
_MAX_RESPONSES = 1 << 30

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Decoded(Generic[Result]):
    """A body as its decoder returned it, and its number of bytes without compression."""

    value: Result
    num_bytes: int


class Bodies:
    """Reads and decodes the bodies of all requests.

    What is large is decoded on threads that callers share fairly (`FairPool`). The bytes of the
    large bodies in progress are bounded in total, and shared by callers (`SharedCapacity`).

    Use it from one event loop at a time.

    Args:
        settings: `max_body_bytes` for each, and eight times that for all large ones together.
        stopping: Once set, bodies that wait are not decoded any more.
    """

    def __init__(self, settings: Settings, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._in_progress = SharedCapacity(_MAX_LARGEST_BODIES * settings.max_body_bytes)
        self._pool = FairPool("body", small_size=_MEDIUM_BYTES, max_jobs=_MAX_JOBS)
        self._responses = FairPool("response", small_size=_MEDIUM_BYTES, max_jobs=_MAX_RESPONSES)

    @property
    def max_bytes(self) -> int:
        """The most bytes that the large bodies in progress may have."""
        return self._in_progress.capacity

    @property
    def num_bytes(self) -> int:
        """The bytes of the large bodies in progress."""
        return self._in_progress.num_used

    @property
    def num_jobs(self) -> int:
        """The number of jobs that wait for a thread or run."""
        return self._pool.num_jobs

    @asynccontextmanager
    async def decoded(
        self, request: Request, decode: Callable[[bytes], Result]
    ) -> AsyncIterator[Decoded[Result]]:
        """The request's body, which counts as in progress while in the context.

        Args:
            decode: May be called on a thread.

        Raises:
            ApiError: The body is of the wrong type, too large, too slow or not valid, or too many
                large bodies are in progress.
            ClientDisconnect: The client is gone.
        """
        check_content_type(request.headers)
        codings = content_codings(request.headers)
        held = _HeldBytes(self._in_progress, request.state.caller)
        try:
            content = await self._read(request, held)
            if codings:
                most = self._settings.max_body_bytes
                inflating = self._run(request, len(content), decompress, content, codings, most)
                content = await self._while_connected(request, inflating)
                held.resize(len(content))
            num_bytes = len(content)
            effort = _effort(content)
            if effort <= SMALL_BYTES:
                value = decode(content)
            else:
                decoding = self._run(request, effort, decode, content)
                value = await self._while_connected(request, decoding)
            del content
            yield Decoded(value, num_bytes)
        finally:
            held.resize(0)

    async def converted(
        self, request: Request, num_bytes: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Return `function(*arguments)`, called on a thread if `num_bytes` is large.

        Args:
            num_bytes: The size of the service's response that the function converts.
        """
        effort = _EFFORT_OF_RESPONSES * num_bytes
        if effort <= SMALL_BYTES:
            return function(*arguments)
        name, weight = _share(request.state.caller)
        return await self._responses.run(name, effort, function, *arguments, weight=weight)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.close()
        self._responses.close()

    async def _read(self, request: Request, held: "_HeldBytes") -> bytes:
        max_bytes, timeout_s = self._settings.max_body_bytes, self._settings.body_timeout_s
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > max_bytes:
            raise too_large(max_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    if len(body) > max_bytes:
                        raise too_large(max_bytes)
                    held.resize(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise ApiError(
                408,
                f"The body took longer than {timeout_s:g} s.",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None

    async def _run(
        self, request: Request, size: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Return `function(*arguments)`, called on a thread. Raises ApiError if too many wait."""
        name, weight = _share(request.state.caller)
        try:
            return await self._pool.run(name, size, function, *arguments, weight=weight)
        except PoolFull:
            raise _full() from None

    async def _while_connected(self, request: Request, job: Coroutine[Any, Any, Result]) -> Result:
        return await while_connected(request.receive, self._stopping, job)


def _effort(content: bytes) -> int:
    """What decoding takes, in bytes of text that could be decoded meanwhile."""
    if len(content) > _MEDIUM_BYTES:  # whatever is in it, it is large
        return len(content)
    return len(content) + _BYTES_PER_ELEMENT * most_elements(content)


class _HeldBytes:
    """The bytes that one body holds of what all bodies may have. A small one holds none."""

    def __init__(self, capacity: SharedCapacity, caller: Caller) -> None:
        self._capacity = capacity
        self._name, self._weight = _share(caller)
        self._num_held = 0

    def resize(self, num_bytes: int) -> None:
        """Hold what a body of this size holds. Raises ApiError if there is no room."""
        wanted = num_bytes if num_bytes > SMALL_BYTES else 0
        more = wanted - self._num_held
        if more > 0:
            if not self._capacity.has_room(self._name, more, self._weight):
                raise _full()
            self._capacity.take(self._name, more)
        elif more < 0:
            self._capacity.give_back(self._name, -more)
        self._num_held = wanted


def _share(caller: Caller) -> tuple[str, int]:
    """The caller's name, empty if it has none, and its weight among callers."""
    info = caller.info
    return ("", 1) if info is None else (info.name, info.weight)


def _full() -> ApiError:
    return ApiError(
        503,
        "Too many large requests are being read. Please retry.",
        kind="service_unavailable_error",
        code="server_is_overloaded",
        headers={"retry-after": "1"},
        reason="BODIES_FULL",
    )
