"""Reads server-sent events, with limits on their size."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import httpx
from httpx_sse import EventSource, SSEError

from service.errors import UpstreamInvalidResponse

# The largest events are those with log probabilities. A message of our own API has at most 8 MiB.
MAX_EVENT_BYTES = 8 << 20
# The data of the last event.
DONE = "[DONE]"


async def event_data(response: httpx.Response) -> AsyncGenerator[str, None]:
    """Yield the data of each event until the end of the response.

    Comments and events without data are left out.

    Raises:
        UpstreamInvalidResponse: The response is no event stream, or an event is too large.
        httpx.TransportError: The response ended early, or nothing came for too long.
    """
    body = _Bounded(response)
    bounded = httpx.Response(200, headers=_content_type(response), stream=body)
    try:
        async with aclosing(EventSource(bounded).aiter_sse()) as events:
            async for event in events:
                body.num_unread = 0
                if event.data:
                    yield event.data
    except SSEError:
        raise UpstreamInvalidResponse(
            "The upstream service returned no event stream, although one was requested."
        ) from None


class _Bounded(httpx.AsyncByteStream):
    """The body of a response, limited to `MAX_EVENT_BYTES` without a complete event.

    Attributes:
        num_unread: Number of bytes since the last event.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self.num_unread = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_raw():
            self.num_unread += len(chunk)
            if self.num_unread > MAX_EVENT_BYTES:
                raise UpstreamInvalidResponse(
                    "The upstream service sent an event that is too large."
                )
            yield chunk


def _content_type(response: httpx.Response) -> dict[str, str]:
    """Return the type of the content. Events are always UTF-8."""
    kind, _, _ = response.headers.get("content-type", "").partition(";")
    return {"content-type": f"{kind}; charset=utf-8"}
