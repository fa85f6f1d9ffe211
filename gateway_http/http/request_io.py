"""JSON responses, and work that is cancelled when the client disconnects."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive

from gateway_http.protocol.error import ServiceUnavailable

_encode = msgspec.json.Encoder().encode

Result = TypeVar("Result")


def json_response(
    body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with `body` as JSON."""
    return Response(_encode(body), status, headers, media_type="application/json")


async def while_connected(
    receive: Receive, stopping: asyncio.Event, work: Coroutine[object, object, Result]
) -> Result:
    """Return the result of `work`. Cancel `work` if the client disconnects or `stopping` is set.

    The body must have been read before: then `receive` can only return a disconnect.

    Raises:
        ClientDisconnect: The client has disconnected.
        ServiceUnavailable: `stopping` is set.
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
            raise ServiceUnavailable(
                "The gateway is shutting down. Please retry.", retry_after_s=None, reason="DRAINING"
            )
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        # The work frees its resources before the request counts as finished.
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
