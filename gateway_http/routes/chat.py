"""POST /v1/chat/completions."""

import asyncio
import time
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from chatrpc.v1 import chat_pb2
from gateway_http import sse
from gateway_http.clients import json_response, read_body, while_connected
from gateway_http.config import Settings
from gateway_http.convert import answers, requests
from gateway_http.convert.chunks import ChunkStream
from gateway_http.errors import from_exception
from gateway_http.metrics import Metrics
from gateway_http.protocol.decode import decode
from gateway_http.protocol.request import ChatCompletionRequest, StreamOptions
from gateway_http.upstreams import CallOptions, Upstream


class ChatCompletions:
    """An ASGI application rather than a function: it watches its client while it works.

    When the client leaves, the work is cancelled, and with it the call to the service. When
    `stopping` is set, so is the work, and the client is told.
    """

    def __init__(self, settings: Settings, metrics: Metrics, stopping: asyncio.Event) -> None:
        self._settings = settings
        self._stopping = stopping
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = Request(scope)
        request = decode(await read_body(http.headers, receive, self._settings.max_body_bytes))
        params = requests.params(request)
        options = CallOptions(self._settings.request_timeout_s, http.state.call_metadata)
        upstream: Upstream = http.state.upstream
        if not request.stream:
            work = _create(upstream, params, options, http, send)
            await while_connected(receive, self._stopping, work)
            return
        events = sse.EventStream(send)
        work = self._stream(upstream, params, options, _chunk_stream(request), events)
        try:
            await while_connected(receive, self._stopping, work)
        except ClientDisconnect:
            raise
        except Exception as error:
            if not events.is_open:
                raise
            await events.write(sse.event(from_exception(error).body))
        await events.close()

    async def _stream(
        self,
        upstream: Upstream,
        params: chat_pb2.ChatCompletionParams,
        options: CallOptions,
        stream: ChunkStream,
        events: sse.EventStream,
    ) -> None:
        started_at_s = time.perf_counter()
        idle_s = self._settings.sse_ping_interval_s
        async with aclosing(upstream.stream_chat(params, options, idle_s)) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    await events.write(sse.PING)
                    continue
                is_first = not stream.is_started
                await events.write(b"".join(map(sse.event, stream.push(chunk))))
                if is_first and stream.is_started:
                    self._metrics.first_token_s.observe(time.perf_counter() - started_at_s)
        await events.write(b"".join(map(sse.event, stream.finish())))


async def _create(
    upstream: Upstream,
    params: chat_pb2.ChatCompletionParams,
    options: CallOptions,
    http: Request,
    send: Send,
) -> None:
    completion = await upstream.create_chat(params, options)
    response = json_response(answers.completion(completion))
    await response(http.scope, http.receive, send)


def _chunk_stream(request: ChatCompletionRequest) -> ChunkStream:
    wanted = request.stream_options or StreamOptions()
    return ChunkStream(
        n=request.n or 1,
        include_usage=bool(wanted.include_usage),
        running_usage=bool(wanted.continuous_usage_stats),
    )
