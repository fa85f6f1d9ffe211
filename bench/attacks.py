"""Attacks of one caller on the others: requests that are cheap to send and expensive to handle.

Each attack runs until it is cancelled and ignores the responses. `bench.siege` measures how other
callers are served during the attack.
"""

import asyncio
import gzip
import io
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import grpc
from google.protobuf.message import Message

from bench.words import words
from chatrpc.v1 import chat_pb2, chat_service_pb2, completion_pb2, model_service_pb2
from chatrpc.v1 import completion_service_pb2 as completions

_JSON = {"content-type": "application/json"}
_MIB = 1 << 20
_FOUR_MILLION = 4 * _MIB - 100  # elements of two bytes each, so a message has less than 8 MiB
# The pause between two requests of one client. Without it, a server that rejects at once would get
# ten thousand requests a second, and the loopback interface would be measured.
_PAUSE_S = 0.02
_CREATE = "/chatrpc.v1.ChatService/CreateChatCompletion"
_COMPLETE = "/chatrpc.v1.CompletionService/CreateCompletion"
_TOKENIZE = "/chatrpc.v1.ModelService/Tokenize"

Send = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Target:
    """The stack under attack and the attacker's key.

    Attributes:
        url: The gateway's base URL, without a path.
        grpc: The service's address.
    """

    url: str
    grpc: str
    model: str
    key: str


@dataclass(frozen=True, slots=True)
class Attack:
    """A kind of attack: its title, and a coroutine that runs it."""

    title: str
    run: Callable[[Target], Awaitable[None]]


def _http(
    title: str,
    path: str,
    body: Callable[[str], object],
    num_clients: int = 20,
    *,
    is_compressed: bool = False,
) -> Attack:
    """Return an attack of `num_clients` that post the same body repeatedly."""

    async def run(target: Target) -> None:
        data = json.dumps(body(target.model)).encode()
        headers = _JSON | {"authorization": f"Bearer {target.key}"}
        if is_compressed:
            data = gzip.compress(data)
            headers["content-encoding"] = "gzip"
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def send() -> None:
                body = io.BytesIO(data)
                async with session.post(target.url + path, data=body, headers=headers) as answer:
                    await answer.read()

            await _flood(send, num_clients)

    return Attack(title, run)


def _grpc(
    title: str, method: str, message: Callable[[str], bytes], num_clients: int = 12
) -> Attack:
    """Return an attack of `num_clients` that send the same compressed message repeatedly."""

    async def run(target: Target) -> None:
        data, metadata = message(target.model), (("x-api-key", target.key),)
        async with _channel(target) as channel:
            call: Any = channel.unary_unary(method)
            await _flood(lambda: _read_to_end(call(data, metadata=metadata)), num_clients)

    return Attack(title, run)


def _grpc_texts(title: str, method: str, make: Callable[[str, str], Message]) -> Attack:
    """Return an attack of 60 clients with texts of 660 KB. Half of them disconnect after 0.5 s."""

    async def run(target: Target) -> None:
        metadata = (("x-api-key", target.key),)
        text = words(120_000, random.Random(0))
        async with _channel(target, grpc.Compression.NoCompression) as channel:
            call: Any = channel.unary_unary(method)
            numbers = iter(range(10**9))

            async def send() -> None:
                number = next(numbers)
                data = make(target.model, f"{number} {text}").SerializeToString()
                timeout_s = 0.5 if number % 2 else None
                await _read_to_end(call(data, metadata=metadata, timeout=timeout_s))

            await _flood(send, 60)

    return Attack(title, run)


async def _schemas(target: Target) -> None:
    """Run 40 clients. Each request has a new union of 900 objects to compile."""
    numbers = iter(range(10**9))
    metadata = (("x-api-key", target.key),)
    async with _channel(target) as channel:
        call: Any = channel.unary_unary(_CREATE)

        async def send() -> None:
            number = next(numbers)
            parts = [
                {"type": "object", "properties": {f"p{number}_{i}": {"type": "integer"}}}
                for i in range(900)
            ]
            params = _chat(target.model, "hi")
            params.response_format.json_schema.schema_json = json.dumps({"anyOf": parts})
            data = chat_service_pb2.CreateChatCompletionRequest(params=params)
            await _read_to_end(call(data.SerializeToString(), metadata=metadata))

        await _flood(send, 40)


async def _chats(
    target: Target, num_clients: int, num_words: int, options: chat_pb2.ChatCompletionParams
) -> None:
    """Send chats of `num_words` random words, each with the fields in `options`."""
    metadata = (("x-api-key", target.key),)
    rng = random.Random(0)
    async with _channel(target) as channel:
        call: Any = channel.unary_unary(_CREATE)

        async def send() -> None:
            params = _chat(target.model, words(num_words, rng))
            params.MergeFrom(options)
            data = chat_service_pb2.CreateChatCompletionRequest(params=params)
            await _read_to_end(call(data.SerializeToString(), metadata=metadata))

        await _flood(send, num_clients)


async def _generations(target: Target, *, priority: int = 0, n: int = 1) -> None:
    """Run 200 clients with long responses."""
    sampling = chat_pb2.SamplingParams(n=n, max_completion_tokens=400, ignore_eos=True)
    options = chat_pb2.ChatCompletionParams(sampling=sampling, priority=priority)
    await _chats(target, 200, 200, options)


async def _prompt_logprobs(target: Target) -> None:
    """Run 60 clients that request the log probabilities of each token of a long prompt."""
    sampling = chat_pb2.SamplingParams(max_completion_tokens=1)
    options = chat_pb2.ChatCompletionParams(sampling=sampling, prompt_logprobs=20)
    await _chats(target, 60, 2000, options)


async def _idle_connections(target: Target) -> None:
    """Open 1000 connections, send one probe on each, and keep them open."""
    address = urlsplit(target.url)

    async def hold() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while await reader.read(4096):
                pass
        finally:
            writer.close()

    await _flood(hold, 1000)


async def _watches(target: Target) -> None:
    """Open endless streams that need no key: health watches and load reports."""
    async with _channel(target) as channel:
        watch: Any = channel.unary_stream("/grpc.health.v1.Health/Watch")
        report: Any = channel.unary_stream("/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics")

        async def send() -> None:
            await _read_to_end(watch(bytes(7 * _MIB)))  # many unknown fields
            await _read_to_end(report(bytes(7 * _MIB)))
            async for _ in watch(b""):
                pass

        await _flood(send, 40)


def _chat(model: str, text: str) -> chat_pb2.ChatCompletionParams:
    message = chat_pb2.ChatMessage(
        role=chat_pb2.ROLE_USER, content=[chat_pb2.ContentPart(text=text)]
    )
    return chat_pb2.ChatCompletionParams(model=model, messages=[message])


def _chat_with(fields: Callable[[], bytes]) -> Callable[[str], bytes]:
    """Return a function that encodes a chat request with further encoded parameters."""
    return lambda model: _encoded(1, _chat(model, "hi").SerializeToString() + fields())


def _encoded(number: int, value: bytes) -> bytes:
    """Return a length-delimited field: https://protobuf.dev/programming-guides/encoding/#structure.

    Encoding messages of millions of elements as bytes is fast.
    """
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _ids(model: str) -> bytes:
    params = completion_pb2.CompletionParams(model=model).SerializeToString()
    prompt = _encoded(2, _encoded(1, b"\x01" * 8_000_000))
    return _encoded(1, params + _encoded(2, prompt))


def _tokenized(model: str, text: str) -> Message:
    return model_service_pb2.TokenizeRequest(model=model, text=text)


def _too_long(model: str, text: str) -> Message:
    return chat_service_pb2.CreateChatCompletionRequest(params=_chat(model, text))


def _many_prompts(model: str, text: str) -> Message:
    prompt = completion_pb2.CompletionPrompt(text=text[:50_000])
    params = completion_pb2.CompletionParams(model=model, prompts=[prompt] * 100)
    return completions.CreateCompletionRequest(params=params)


def _body(name: str, make: Callable[[], object]) -> Callable[[str], object]:
    """Return a function that builds a chat with one large field. Calling it may take seconds."""
    message = {"role": "user", "content": "hi"}
    return lambda model: {"model": model, "messages": [message], name: make()}


_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"

ATTACKS = {
    "http-metadata": _http(
        "bodies with 400 000 keys in `metadata`",
        _CHAT,
        _body("metadata", lambda: {str(i): "" for i in range(400_000)}),
    ),
    "http-messages": _http(
        "bodies of 200 000 messages", _CHAT, _body("messages", lambda: [{"role": "user"}] * 200_000)
    ),
    "http-parts": _http(
        "bodies with 240 000 empty parts",
        _CHAT,
        _body(
            "messages",
            lambda: [{"role": "user", "content": [{"type": "text", "text": ""}] * 240_000}],
        ),
    ),
    "http-arrays": _http(
        "bodies with 1.9 million arrays in `chat_template_kwargs`",
        _CHAT,
        _body("chat_template_kwargs", lambda: {"x": [[]] * 1_900_000}),
    ),
    "http-ids": _http(
        "bodies with 1.9 million token ids",
        _TEXT,
        lambda model: {"model": model, "prompt": [1] * 1_900_000},
    ),
    "http-bomb": _http(
        "compressed bodies that expand to 100 MiB",
        _CHAT,
        lambda _: " " * (100 * _MIB),
        is_compressed=True,
    ),
    "http-gzip": _http(
        "compressed bodies of 400 000 messages",
        _CHAT,
        _body("messages", lambda: [{"role": "user"}] * 400_000),
        is_compressed=True,
    ),
    "http-text": _http(
        "bodies of one text of 8 MB",
        _CHAT,
        _body("messages", lambda: [{"role": "user", "content": "a, " * 2_700_000}]),
    ),
    "grpc-parts": _grpc(
        "messages of 2 million parts",
        _CREATE,
        _chat_with(lambda: _encoded(2, _encoded(2, _encoded(1, b"")) * (2 * _MIB - 100))),
    ),
    "grpc-tools": _grpc(
        "messages of 4 million tools",
        _CREATE,
        _chat_with(lambda: _encoded(4, b"") * _FOUR_MILLION),
    ),
    "grpc-calls": _grpc(
        "messages of 4 million tool calls",
        _CREATE,
        _chat_with(lambda: _encoded(2, _encoded(4, b"") * _FOUR_MILLION)),
    ),
    "grpc-modalities": _grpc(
        "messages of 8 million modalities",
        _CREATE,
        _chat_with(lambda: _encoded(16, b"\x01" * 8_000_000)),
    ),
    "grpc-ids": _grpc("messages of 8 million token ids", _COMPLETE, _ids),
    "tokenize": _grpc_texts("texts of 660 KB to tokenize", _TOKENIZE, _tokenized),
    "too-long": _grpc_texts("chats of 660 KB, far too long", _CREATE, _too_long),
    "prompts": _grpc_texts("completions of 100 long prompts", _COMPLETE, _many_prompts),
    "schemas": Attack("distinct schemas of 900 alternatives", _schemas),
    "generations": Attack("200 clients with long responses", _generations),
    "priority": Attack(
        "the same with a priority of -1000", lambda target: _generations(target, priority=-1000)
    ),
    "choices": Attack("the same with n = 96", lambda target: _generations(target, n=96)),
    "prompt-logprobs": Attack("log probabilities of 2000-word prompts", _prompt_logprobs),
    "idle": Attack("1000 idle connections", _idle_connections),
    "watches": Attack("40 clients with streams that need no key", _watches),
}


async def _flood(send: Send, num_clients: int) -> None:
    """Send forever. Each client sends its next request when its last one has ended."""

    async def client() -> None:
        while True:
            with suppress(aiohttp.ClientError, grpc.aio.AioRpcError, OSError):
                await send()
            await asyncio.sleep(_PAUSE_S)

    async with asyncio.TaskGroup() as group:
        for _ in range(num_clients):
            group.create_task(client())


async def _read_to_end(call: object) -> None:
    """Read a call to its end."""
    if hasattr(call, "__aiter__"):
        async for _ in call:
            pass
    else:
        await call  # type: ignore[misc]  # the call is unary


@asynccontextmanager
async def _channel(
    target: Target, compression: grpc.Compression = grpc.Compression.Gzip
) -> AsyncIterator[grpc.aio.Channel]:
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
    ]
    async with grpc.aio.insecure_channel(target.grpc, options, compression=compression) as channel:
        yield channel
