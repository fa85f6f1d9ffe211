"""The HTTP client's side: the JSON it gets, and whether it is still there."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive

from gateway_http.protocol.error import ApiError

_encode = msgspec.json.Encoder().encode

Result = TypeVar("Result")


def json_response(
    body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(_encode(body), status, headers, media_type="application/json")


async def while_connected(
    receive: Receive, stopping: asyncio.Event, work: Coroutine[object, object, Result]
) -> Result:
    """Return the work's result; cancel it if the client leaves before, or `stopping` is set.

    The body must have been read: what `receive` has left to tell is that the client is gone.

    Raises:
        ClientDisconnect: the client is gone.
        ApiError: the gateway is, and the client should hear of it.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    closing = asyncio.ensure_future(stopping.wait())
    tasks: tuple[asyncio.Future[Any], ...] = (working, watching, closing)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not working.done():
            raise ClientDisconnect
        if not working.done():
            raise _shutting_down()
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        # The work frees what it holds before the request counts as over.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _shutting_down() -> ApiError:
    return ApiError(
        503,
        "The gateway is shutting down. Please retry.",
        kind="service_unavailable_error",
        code="service_unavailable",
        reason="DRAINING",
    )
