"""A client for chat completions over OpenAI's HTTP API, as server-sent events."""

import time
from collections.abc import Callable
from typing import Any

import aiohttp
import msgspec

from bench import sse
from bench.request import Record, Request, Transcript

_encode = msgspec.json.Encoder().encode

Body = dict[str, Any]
Dialect = Callable[[str, Request], Body]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_read_chunk = msgspec.json.Decoder(_Chunk).decode


def openai_body(model: str, request: Request) -> Body:
    """Return the request body that vLLM, llama.cpp and our gateway accept."""
    return {
        "model": model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "max_tokens": request.num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


class HttpClient:
    """A `bench.request.Client` over HTTP. `base_url` ends in `/v1`, as for OpenAI's clients.

    aiohttp's parser is in C and its streams return bytes as they arrive. Among the available
    clients it uses the least CPU time, which it shares with the server.
    """

    def __init__(
        self, base_url: str, model: str, dialect: Dialect = openai_body, key: str = ""
    ) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._model = model
        self._dialect = dialect
        self._session = aiohttp.ClientSession(
            # Each request has a new connection. llama.cpp's server announces that it keeps a
            # connection, but closes it after every stream. All servers are treated the same.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
            headers={"content-type": "application/json"}
            | ({"authorization": f"Bearer {key}"} if key else {}),
        )

    async def send(self, transcript: Transcript) -> None:
        body = _encode(self._dialect(self._model, transcript.request))
        note, clock = transcript.pieces.append, time.perf_counter
        try:
            async with self._session.post(self._url, data=body) as response:
                if response.status != 200:
                    said = (await response.text())[:200]
                    transcript.error = f"HTTP {response.status}: {said}"
                    return
                async for piece in response.content.iter_any():
                    note((clock(), piece))
        except (aiohttp.ClientError, OSError) as error:
            transcript.error = f"{type(error).__name__}: {error}"

    def read(self, transcript: Transcript) -> Record:
        arrivals: list[float] = []
        text: list[str] = []
        usage, error = _Usage(), transcript.error
        try:
            for time_s, event in sse.events(transcript.pieces):
                chunk = _read_chunk(event)
                usage = chunk.usage or usage
                if chunk.error:
                    error = error or bytes(chunk.error).decode()
                if said := _text(chunk):
                    arrivals.append(time_s)
                    text.append(said)
        except msgspec.DecodeError as malformed:
            error = error or f"malformed event: {malformed}"
        details = usage.prompt_tokens_details
        return Record(
            due_s=transcript.due_s,
            arrivals_s=tuple(arrivals),
            text="".join(text),
            num_requested=transcript.request.num_tokens,
            num_output_tokens=usage.completion_tokens,
            num_prompt_tokens=usage.prompt_tokens,
            num_cached_tokens=(details.cached_tokens or 0) if details else 0,
            error=error,
        )

    async def close(self) -> None:
        await self._session.close()


def _text(chunk: _Chunk) -> str:
    deltas = (choice.delta for choice in chunk.choices)
    return "".join((delta.content or "") + (delta.reasoning_content or "") for delta in deltas)
