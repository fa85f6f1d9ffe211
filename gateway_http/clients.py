"""The HTTP client's side: the body it sends, the JSON it gets, and whether it is still there."""

import asyncio
from collections.abc import Coroutine, Mapping

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive

from gateway_http.protocol.error import ApiError

_encode = msgspec.json.Encoder().encode


async def read_body(headers: Headers, receive: Receive, max_bytes: int, timeout_s: float) -> bytes:
    """Raises ApiError for a wrong content type, for a body that takes longer than `timeout_s` and,
    before it has read it all, for a large one.
    """
    _check_content_type(headers.get("content-type", ""))
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise ApiError(
            408,
            f"The body took longer than {timeout_s:g} s.",
            code="request_timeout",
            headers={"connection": "close"},
        ) from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def json_response(
    body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_encode(body), status, headers, media_type="application/json")


async def while_connected(
    receive: Receive, stopping: asyncio.Event, work: Coroutine[object, object, None]
) -> None:
    """Do the work; cancel it at once if the client goes away before, or `stopping` is set.

    The body must have been read: what `receive` has left to tell is that the client is gone.

    Raises:
        ClientDisconnect: the client is gone.
        ApiError: the gateway is, and the client should hear of it.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    closing = asyncio.ensure_future(stopping.wait())
    tasks = (working, watching, closing)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not working.done():
            raise ClientDisconnect
        if not working.done():
            raise _shutting_down()
        working.result()
    finally:
        for task in tasks:
            task.cancel()
        # The work frees what it holds before the request counts as over.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _check_content_type(content_type: str) -> None:
    if content_type.partition(";")[0].strip().lower() == "application/json":
        return
    sent = f"'{content_type[:100]}'" if content_type else "none"
    raise ApiError(
        415,
        f"Unsupported content type: {sent}. Send the header 'Content-Type: application/json'; with "
        "curl, -H 'Content-Type: application/json'.",
        code="unsupported_content_type",
    )


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413, f"The body is too large: at most {max_bytes} bytes.", code="request_too_large"
    )


def _shutting_down() -> ApiError:
    return ApiError(
        503,
        "The gateway is shutting down. Please retry.",
        kind="service_unavailable_error",
        code="service_unavailable",
        reason="DRAINING",
    )
