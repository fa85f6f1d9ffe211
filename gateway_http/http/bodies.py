"""Reads and decodes request bodies, and converts large responses and stored conversations, within
limits that all requests share.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request

from chatrpc_process.fairness.capacity import SharedCapacity
from chatrpc_process.fairness.pool import FairPool, PoolFull
from gateway_http.http.content_coding import decompress, too_large
from gateway_http.http.content_type import check_content_type, content_codings
from gateway_http.http.request_io import while_connected
from gateway_http.protocol.elements import most_elements
from gateway_http.protocol.error import ApiError, ServiceUnavailable

# Maximum size of all large bodies in progress, in units of `--max-body-bytes`. With the default of
# that option it is 64 MiB. A body takes three to five times its size in memory while its request
# lasts, so the gateway needs 512 MiB at most.
_MAX_LARGEST_BODIES = 8
# Larger bodies are decoded on a thread, and count as in progress.
SMALL_BYTES = 32 << 10
# The largest body that the threads for small ones decode.
_MEDIUM_BYTES = 256 << 10
# Each key or value counts as this many bytes more, since decoding it takes time. So decoding on the
# event loop takes at most about two milliseconds.
_BYTES_PER_ELEMENT = 16
# Maximum number of bodies that wait for a thread or are being decoded. Each has been read fully.
_MAX_JOBS = 512
# Converting a byte of a response takes as long as decoding this many bytes of a request: large
# responses consist of log probabilities, which have 20 bytes each.
_BYTES_PER_RESPONSE_BYTE = 4
# Effectively no limit: a response is always sent, and there are no more responses than requests.
_MAX_RESPONSES = 1 << 30

Result = TypeVar("Result")


class CapacityShare(Protocol):
    """The caller that capacity is used for: its name, and its share relative to other callers."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Decoded(Generic[Result]):
    """A decoded body.

    Attributes:
        value: The body.
        num_bytes: Its uncompressed size in bytes.
        hold: Counts further bytes as in progress, which the request uses besides its body. Raises
            ApiError if too little capacity is free.
    """

    value: Result
    num_bytes: int
    hold: Callable[[int], None]


class Bodies:
    """Reads and decodes the bodies of all requests.

    Large bodies are decoded on threads that callers share fairly (`FairPool`). The bytes of the
    large bodies in progress are limited in total, and shared by callers (`SharedCapacity`).

    Use it from one event loop at a time.

    Args:
        max_body_bytes: Maximum size of one body, in bytes. All large bodies in progress together
            may have eight times this size.
        timeout_s: The maximum duration in seconds of receiving a body.
        stopping: Once set, waiting bodies are not decoded.
    """

    def __init__(self, max_body_bytes: int, timeout_s: float, stopping: asyncio.Event) -> None:
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._stopping = stopping
        self._in_progress = SharedCapacity(_MAX_LARGEST_BODIES * max_body_bytes)
        self._pool = FairPool("body", small_size=_MEDIUM_BYTES, max_jobs=_MAX_JOBS)
        self._responses = FairPool("response", small_size=_MEDIUM_BYTES, max_jobs=_MAX_RESPONSES)

    @property
    def max_bytes(self) -> int:
        """Maximum size of all large bodies in progress together, in bytes."""
        return self._in_progress.capacity

    @property
    def num_bytes(self) -> int:
        """The total size of the large bodies in progress, in bytes."""
        return self._in_progress.num_used

    @property
    def num_jobs(self) -> int:
        """The number of jobs that run or wait for a thread."""
        return self._pool.num_jobs

    @asynccontextmanager
    async def decoded(
        self, request: Request, caller: CapacityShare, decode: Callable[[bytes], Result]
    ) -> AsyncIterator[Decoded[Result]]:
        """Read and decode a request's body, which counts as in progress while in the context.

        Args:
            request: The request.
            caller: Its caller.
            decode: Decodes the body. It may be called on a thread.

        Raises:
            ApiError: The body is of the wrong type, too large, too slow or invalid, or too many
                large bodies are in progress.
            ClientDisconnect: The client has disconnected.
        """
        check_content_type(request.headers)
        codings = content_codings(request.headers)
        held = _HeldBytes(self._in_progress, caller)
        try:
            content = await self._read(request, held)
            if codings:
                most = self._max_body_bytes
                job = self._run(caller, len(content), decompress, content, codings, most)
                content = await self._while_connected(request, job)
                held.resize(len(content))
            num_bytes = len(content)
            cost = _decoding_cost(content)
            if cost <= SMALL_BYTES:
                value = decode(content)
            else:
                decoding = self._run(caller, cost, decode, content)
                value = await self._while_connected(request, decoding)
            del content
            yield Decoded(value, num_bytes, held.add)
        finally:
            held.resize(0)

    async def converted(
        self,
        caller: CapacityShare,
        num_bytes: int,
        function: Callable[..., Result],
        *arguments: Any,
    ) -> Result:
        """Return `function(*arguments)`, called on a thread if `num_bytes` is large.

        Args:
            caller: The caller of the request.
            num_bytes: The size of what the function converts: the service's response, or a body
                with the stored conversation that it continues.
            function: The function.
            arguments: Its arguments.
        """
        cost = _BYTES_PER_RESPONSE_BYTE * num_bytes
        if cost <= SMALL_BYTES:
            return function(*arguments)
        name, weight = caller.name, caller.weight
        return await self._responses.run(name, cost, function, *arguments, weight=weight)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.close()
        self._responses.close()

    async def _read(self, request: Request, held: "_HeldBytes") -> bytes:
        max_bytes, timeout_s = self._max_body_bytes, self._timeout_s
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
        self, caller: CapacityShare, size: int, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """Return `function(*arguments)`, called on a thread.

        Raises:
            ApiError: The pool has too many jobs.
        """
        name, weight = caller.name, caller.weight
        try:
            return await self._pool.run(name, size, function, *arguments, weight=weight)
        except PoolFull:
            raise _full() from None

    async def _while_connected(self, request: Request, job: Coroutine[Any, Any, Result]) -> Result:
        return await while_connected(request.receive, self._stopping, job)


def _decoding_cost(content: bytes) -> int:
    """Return the cost of decoding `content`, in bytes of plain text that take as long."""
    if len(content) > _MEDIUM_BYTES:  # it is large, whatever its content
        return len(content)
    return len(content) + _BYTES_PER_ELEMENT * most_elements(content)


class _HeldBytes:
    """The part of the shared capacity that one request uses. A small body uses none."""

    def __init__(self, capacity: SharedCapacity, caller: CapacityShare) -> None:
        self._capacity = capacity
        self._name, self._weight = caller.name, caller.weight
        self._num_bytes = self._num_held = 0

    def add(self, num_bytes: int) -> None:
        """Use the capacity for this many more bytes. Raises ApiError if too little is free."""
        self.resize(self._num_bytes + num_bytes)

    def resize(self, num_bytes: int) -> None:
        """Use the capacity for this many bytes. Raises ApiError if too little is free."""
        wanted = num_bytes if num_bytes > SMALL_BYTES else 0
        more = wanted - self._num_held
        if more > 0:
            if not self._capacity.has_room(self._name, more, self._weight):
                raise _full()
            self._capacity.take(self._name, more)
        elif more < 0:
            self._capacity.release(self._name, -more)
        self._num_bytes, self._num_held = num_bytes, wanted


def _full() -> ApiError:
    return ServiceUnavailable(
        "Too many large requests are being read. Please retry.",
        "server_is_overloaded",
        reason="BODIES_FULL",
    )
