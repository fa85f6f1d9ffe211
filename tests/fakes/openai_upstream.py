"""A server with OpenAI's API on a real socket, whose responses a test scripts byte by byte."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

MODEL = "remote-model"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 3,
    "total_tokens": 10,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}

Send = Callable[[bytes], Awaitable[None]]


@dataclass(frozen=True)
class Received:
    """A request."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Handler = Callable[[Received, Send], Awaitable[None]]


@dataclass
class FakeUpstream:
    """The state of a server, and the handlers of its endpoints.

    A handler sends the raw bytes of a response. If it returns, the connection is kept; if it raises
    ConnectionError, the connection is closed at once.

    Attributes:
        requests: All requests so far, those for the list of models excluded.
        num_probes: Number of requests for the list of models.
        num_running: Number of requests in progress.
        num_abandoned: Number of requests whose client has left before their end.
        connections: Number of connections so far.
    """

    url: str = ""
    models: list[dict[str, Any]] = field(
        default_factory=lambda: [{"id": MODEL, "object": "model", "owned_by": "vllm"}]
    )
    handlers: dict[str, Handler] = field(default_factory=dict)
    requests: list[Received] = field(default_factory=list)
    num_probes: int = 0
    num_running: int = 0
    num_abandoned: int = 0
    connections: int = 0
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def generations(self) -> list[Any]:
        """The bodies of all requests."""
        return [request.body for request in self.requests]

    def chat(self, handler: Handler) -> None:
        """Set the handler of chat completions."""
        self.handlers["/v1/chat/completions"] = handler

    def completions(self, handler: Handler) -> None:
        """Set the handler of text completions."""
        self.handlers["/v1/completions"] = handler

    async def start(self, port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=tls)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def stop(self) -> None:
        """Close the port and all connections."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                begun: bytes | None = b""
                while begun is not None:
                    begun = await self._exchange(begun, reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(
        self, begun: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        """Serve one request, which begins with `begun`.

        Returns:
            What was read of the next request; None if the connection is to be closed.
        """
        head = (begun + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, _ = head[0].split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Received(method, path, headers, json.loads(content) if content else None)

        async def send(data: bytes) -> None:
            writer.write(data)
            await writer.drain()

        if path == "/v1/models":
            self.num_probes += 1
        else:
            self.requests.append(request)
        handler = self.handlers.get(path, self._default)
        left = asyncio.ensure_future(reader.read(1))
        work = asyncio.ensure_future(_run(handler, request, send))
        self.num_running += 1
        try:
            await asyncio.wait({left, work}, return_when=asyncio.FIRST_COMPLETED)
            if left.done() and not left.result() and not work.done():
                self.num_abandoned += 1
                return None
            await work
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
            return b"" if left.cancelled() else left.result() or None
        finally:
            self.num_running -= 1
            for each in (left, work):
                each.cancel()
            await asyncio.gather(left, work, return_exceptions=True)

    async def _default(self, request: Received, send: Send) -> None:
        if request.path == "/v1/models":
            await send(response(200, {"object": "list", "data": self.models}))
        elif request.path == "/v1/chat/completions":
            await send_stream(send, [*chat_chunks(["Hi", "!"]), usage_chunk()])
        elif request.path == "/v1/completions":
            await send_stream(send, [text_chunk("Hi"), text_chunk("!", "stop"), usage_chunk()])
        else:
            await send(response(404, {"detail": "Not Found"}))


async def _run(handler: Handler, request: Received, send: Send) -> None:
    await handler(request, send)


@asynccontextmanager
async def running(*, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeUpstream]:
    """Run a server with one model, whose output is always "Hi!"."""
    upstream = FakeUpstream()
    await upstream.start(tls=tls)
    try:
        yield upstream
    finally:
        await upstream.stop()


def response(status: int, body: Any, **headers: str) -> bytes:
    """Return a whole response with a JSON body, or with bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(content))}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode() + content


def replies(*responses: bytes) -> Handler:
    """Return a handler that sends one of the responses each time, the last one again and again."""
    waiting = list(responses)

    async def handle(_: Received, send: Send) -> None:
        await send(waiting.pop(0) if len(waiting) > 1 else waiting[0])

    return handle


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"


def http_chunk(data: bytes) -> bytes:
    """Return bytes as a chunk of HTTP's chunked coding."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(data: Any) -> bytes:
    """Return an event with JSON, or with a text as it is."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


async def send_stream(send: Send, chunks: Iterable[Any], *, has_end: bool = True) -> None:
    """Send chunks as events, and `[DONE]` and the end of the body after them if `has_end`."""
    await send(STREAM_HEAD)
    for chunk in chunks:
        await send(http_chunk(event(chunk)))
    if has_end:
        await send(http_chunk(event("[DONE]")) + LAST_CHUNK)


def streams(*chunks: Any) -> Handler:
    """Return a handler that sends a stream of the chunks."""

    async def handle(_: Received, send: Send) -> None:
        await send_stream(send, chunks)

    return handle


def chat_chunk(
    delta: dict[str, Any] | None = None, finish_reason: str | None = None, **fields: Any
) -> dict[str, Any]:
    """Return a chunk of a chat completion. `fields` are those of its choice."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason, **fields}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [choice],
    }


def chat_chunks(texts: Iterable[str], finish_reason: str = "stop") -> list[dict[str, Any]]:
    """Return the chunks of one choice."""
    return [
        chat_chunk({"role": "assistant", "content": ""}),
        *(chat_chunk({"content": text}) for text in texts),
        chat_chunk(finish_reason=finish_reason),
    ]


def text_chunk(text: str, finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a chunk of a text completion. `fields` are those of its choice."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason, "logprobs": None, **fields}
    return {"id": "cmpl-1", "object": "text_completion", "model": MODEL, "choices": [choice]}


def usage_chunk(**usage: Any) -> dict[str, Any]:
    """Return the chunk without choices at the end of a stream."""
    return {"id": "x", "model": MODEL, "choices": [], "usage": usage or USAGE}
