"""Bodies that are large, numerous or never read: limits, order, and work on threads."""

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio
from backports import zstd
from starlette.requests import ClientDisconnect, Request

from chatrpc_process.access.keys import Key
from chatrpc_process.access.quotas import Quotas
from gateway_http.auth.caller import Caller
from gateway_http.http.bodies import SMALL_BYTES, Bodies
from gateway_http.protocol.error import ApiError
from gateway_http.routes.chat import CHAT as CHAT_OPERATION
from gateway_http.routes.completions import COMPLETIONS
from gateway_http.routes.generation import Operation
from tests.fakes.chat_service import Admit, Delta, FakeService, Finish, Hold
from tests.fakes.wait import until
from tests.gateway_http.compression import COMPRESS
from tests.support.api_keys import SECRET, key, write
from tests.support.gateway import metric, started
from tests.support.raw_http import RawClient

CHAT = "/v1/chat/completions"
UNSUPPORTED = "unsupported_content_type"
MIB = 1 << 20
LARGE = b" " * MIB


class Client:
    """A client that sends these pieces of a body and stays connected until it leaves."""

    def __init__(self, *pieces: bytes, owner: str = "", **headers: str) -> None:
        self._pieces = list(pieces)
        self._has_left = asyncio.Event()
        key = Key(name=owner, sha256="0" * 64) if owner else None
        sent = {"content-type": "application/json"} | headers
        raw = [(k.replace("_", "-").encode(), v.encode()) for k, v in sent.items()]
        self.caller = Caller(key, Quotas())
        self.request = Request({"type": "http", "headers": raw}, self._receive)

    def leave(self) -> None:
        self._has_left.set()

    async def _receive(self) -> dict[str, Any]:
        if self._pieces:
            body = self._pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._pieces)}
        await self._has_left.wait()
        return {"type": "http.disconnect"}


class Gate:
    """A decoder that blocks its thread until it is opened, and records its arguments."""

    def __init__(self) -> None:
        self._is_open = threading.Event()
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> int:
        self.bodies.append(body)
        assert self._is_open.wait(60)
        return len(body)

    def open(self) -> None:
        self._is_open.set()


@pytest_asyncio.fixture
async def bodies() -> AsyncIterator[Bodies]:
    made = make()
    yield made
    assert (made.num_bytes, made.num_jobs) == (0, 0)
    made.close()


def make(max_body_bytes: int = 2 * MIB, timeout_s: float = 60) -> Bodies:
    """Make `Bodies` with a capacity of 16 MiB in total."""
    return Bodies(max_body_bytes, timeout_s, asyncio.Event())


async def decoded(bodies: Bodies, client: Client, decode: Callable[[bytes], Any] = bytes) -> Any:
    async with bodies.decoded(client.request, client.caller, decode) as body:
        return body.value


def on_the_loop(_: bytes) -> bool:
    return threading.current_thread() is threading.main_thread()


async def test_small_body_is_decoded_at_once(bodies: Bodies) -> None:
    assert await decoded(bodies, Client(b"x" * (SMALL_BYTES - 100)), on_the_loop)
    assert await decoded(bodies, Client(b"{", b"", b"}")) == b"{}"


async def test_large_body_is_decoded_on_a_thread(bodies: Bodies) -> None:
    assert not await decoded(bodies, Client(b"x" * (SMALL_BYTES + 1)), on_the_loop)


async def test_small_body_of_many_elements_is_decoded_on_a_thread(bodies: Bodies) -> None:
    assert not await decoded(bodies, Client(b"[]," * 1000), on_the_loop)


async def test_error_of_a_decoder_on_a_thread_reaches_the_request(bodies: Bodies) -> None:
    with pytest.raises(ZeroDivisionError):
        await decoded(bodies, Client(LARGE), lambda body: len(body) // 0)


async def test_compressed_body_has_its_own_size(bodies: Bodies) -> None:
    client = Client(gzip.compress(LARGE), content_encoding="gzip")
    async with bodies.decoded(client.request, client.caller, on_the_loop) as body:
        assert body.num_bytes == MIB
        assert body.value is False
        assert bodies.num_bytes == MIB


async def test_further_bytes_of_a_request_count_as_in_progress(bodies: Bodies) -> None:
    client = Client(b"{}")
    async with bodies.decoded(client.request, client.caller, bytes) as body:
        assert bodies.num_bytes == 0
        body.hold(MIB)
        assert bodies.num_bytes == MIB + 2
        with pytest.raises(ApiError) as caught:
            body.hold(bodies.max_bytes)
        assert caught.value.status == 503
    assert bodies.num_bytes == 0


async def test_body_that_expands_beyond_the_limit_is_rejected() -> None:
    bodies = make(max_body_bytes=MIB - 1)
    bomb = gzip.compress(LARGE)
    with pytest.raises(ApiError) as caught:
        await decoded(bodies, Client(bomb, content_encoding="gzip"))
    assert caught.value.status == 413
    assert bodies.num_bytes == 0


async def test_small_body_does_not_wait_for_large_ones(bodies: Bodies) -> None:
    gate = Gate()
    large = [
        asyncio.ensure_future(decoded(bodies, Client(LARGE, owner=owner), gate))
        for owner in ("a", "b", "c")
    ]
    await until(lambda: len(gate.bodies) == 2)
    assert await decoded(bodies, Client(b"x" * (SMALL_BYTES + 1)), len) == SMALL_BYTES + 1
    assert await decoded(bodies, Client(b"{}")) == b"{}"
    gate.open()
    await asyncio.gather(*large)


async def test_callers_take_turns(bodies: Bodies) -> None:
    gates = [Gate(), Gate()]
    order: list[str] = []
    running = [
        asyncio.ensure_future(decoded(bodies, Client(LARGE, owner=owner), gate))
        for owner, gate in zip(("x", "y"), gates, strict=True)
    ]
    await until(lambda: bool(gates[0].bodies and gates[1].bodies))

    def note(owner: str) -> Callable[[bytes], None]:
        return lambda _: order.append(owner)

    waiting = [
        asyncio.ensure_future(decoded(bodies, Client(LARGE, owner=owner), note(owner)))
        for owner in ("a", "a", "a", "b")
    ]
    await until(lambda: bodies.num_jobs == 6)
    gates[0].open()
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "a", "a"]
    gates[1].open()
    await asyncio.gather(*running)


async def test_body_of_a_client_that_leaves_is_dropped_before_it_is_decoded(
    bodies: Bodies,
) -> None:
    gate, left = Gate(), Gate()
    running = asyncio.ensure_future(decoded(bodies, Client(LARGE), gate))
    await until(lambda: bool(gate.bodies))
    clients = [Client(LARGE) for _ in range(10)]
    waiting = [asyncio.ensure_future(decoded(bodies, each, left)) for each in clients]
    await until(lambda: bodies.num_jobs == 11)
    assert bodies.num_bytes == 11 * MIB
    for each in clients:
        each.leave()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(result) for result in results} == {ClientDisconnect}
    assert (bodies.num_jobs, bodies.num_bytes) == (1, MIB)
    gate.open()
    assert await running == MIB
    assert left.bodies == []


async def test_shutdown_ends_what_waits() -> None:
    stopping, gate = asyncio.Event(), Gate()
    bodies = Bodies(2 * MIB, 60, stopping)
    waiting = asyncio.ensure_future(decoded(bodies, Client(LARGE), gate))
    await until(lambda: bool(gate.bodies))
    stopping.set()
    with pytest.raises(ApiError) as caught:
        await waiting
    assert (caught.value.status, caught.value.reason) == (503, "DRAINING")
    gate.open()
    bodies.close()


async def hold(stack: AsyncExitStack, bodies: Bodies, clients: Iterable[Client]) -> int:
    """Return the number of admitted bodies. They are in progress until the stack is closed."""
    num_admitted = 0
    for client in clients:
        try:
            await stack.enter_async_context(bodies.decoded(client.request, client.caller, len))
        except ApiError as error:
            if (error.status, error.reason) != (503, "BODIES_FULL"):
                raise
            return num_admitted
        num_admitted += 1
    return num_admitted


async def test_bytes_in_progress_are_bounded_and_shared(bodies: Bodies) -> None:
    async with AsyncExitStack() as stack:
        assert await hold(stack, bodies, (Client(LARGE, owner="a") for _ in range(20))) == 8
        assert await hold(stack, bodies, (Client(LARGE, owner="b") for _ in range(20))) == 4
        # Callers without a name may use the whole free capacity.
        assert await hold(stack, bodies, (Client(LARGE) for _ in range(20))) == 4
        assert bodies.num_bytes == 16 * MIB
        small = [Client(b"x" * SMALL_BYTES, owner="a") for _ in range(100)]
        assert await hold(stack, bodies, small) == 100
    assert bodies.num_bytes == 0


async def test_body_that_has_not_come_to_its_end_counts_as_far_as_it_came(bodies: Bodies) -> None:
    client = Client(b"x" * MIB)
    client._pieces.append(b"")  # further pieces would follow
    arrived = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if client._pieces:
            return {"type": "http.request", "body": client._pieces.pop(0), "more_body": True}
        arrived.set()
        await client._has_left.wait()
        return {"type": "http.disconnect"}

    client.request._receive = receive
    reading = asyncio.ensure_future(decoded(bodies, client))
    await arrived.wait()
    assert bodies.num_bytes == MIB
    client.leave()
    with pytest.raises(ClientDisconnect):
        await reading


@pytest.mark.parametrize(
    ("operation", "fields"),
    [
        (CHAT_OPERATION, {"messages": [{"role": "user", "content": "x" * MIB}]}),
        (COMPLETIONS, {"prompt": "x" * MIB}),
    ],
)
def test_body_is_kept_without_its_input_once_it_is_converted(
    operation: Operation[Any, Any, Any, Any], fields: dict[str, Any]
) -> None:
    received = operation.receive(json.dumps({"model": "m", "max_tokens": 1} | fields).encode())
    assert not isinstance(received.params, ApiError)
    assert received.params.ByteSize() > MIB
    assert received.names == {"max_completion_tokens": "max_tokens"} | (
        {"prompt[0]": "prompt"} if "prompt" in fields else {}
    )
    assert len(msgspec.json.encode(received.body)) < 4096


async def test_small_response_is_converted_at_once(bodies: Bodies) -> None:
    assert await bodies.converted(Client().caller, 1000, on_the_loop, b"")


async def test_large_response_is_converted_on_a_thread_even_if_many_bodies_wait() -> None:
    bodies, gate = make(), Gate()
    waiting = [asyncio.ensure_future(decoded(bodies, Client(LARGE), gate)) for _ in range(15)]
    await until(lambda: bodies.num_jobs == 15)
    assert not await bodies.converted(Client().caller, MIB, on_the_loop, b"")
    gate.open()
    await asyncio.gather(*waiting)
    bodies.close()


# The following tests run the whole gateway.


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", {str(i): "" for i in range(200_000)}),
        ("messages", [{"role": "user", "content": "x"}] * 100_000),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": ""}] * 100_000}]),
        ("chat_template_kwargs", {"x": [[]] * 1_000_000}),
        ("stop", [""] * 200_000),
        ("stop_token_ids", [1] * 2_000_000),
    ],
)
async def test_body_of_too_many_elements_is_rejected_by_its_field(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], field: str, value: object
) -> None:
    answer = await http.post(CHAT, json=body | {field: value}, timeout=120)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, field)
    assert service.calls == []


@pytest.mark.parametrize("coding", ["gzip", "deflate", "zstd", "identity", "gzip, zstd", ""])
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_compressed_body_is_served(
    http: httpx.AsyncClient, service: FakeService, body: dict[str, Any], coding: str, path: str
) -> None:
    asked = body if path == CHAT else {"content": "Hi"}
    content = json.dumps(asked).encode()
    for name in filter(None, coding.split(", ")):
        content = COMPRESS[name](content)
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = await http.post(path, content=content, headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "content", "status", "code"),
    [
        ({"content-encoding": "br"}, b"{}", 415, "unsupported_content_encoding"),
        ({"content-encoding": "gzip"}, b"{}", 400, None),
        (
            {"content-encoding": "gzip"},
            gzip.compress(bytes(64 * MIB)),
            413,
            "request_too_large",
        ),
        (
            {"content-encoding": "zstd"},
            zstd.compress(bytes(64 * MIB)),
            413,
            "request_too_large",
        ),
        ({"content-type": "application/json; charset=utf-16"}, b"{}", 415, UNSUPPORTED),
        ({}, "{}".encode("utf-16"), 400, None),
    ],
)
async def test_body_that_cannot_be_read_is_rejected(
    http: httpx.AsyncClient,
    service: FakeService,
    headers: dict[str, str],
    content: bytes,
    status: int,
    code: str | None,
) -> None:
    sent = {"content-type": "application/json"} | headers
    for path in (CHAT, "/v1/completions", "/tokenize", "/detokenize"):
        answer = await http.post(path, content=content, headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        if code == "unsupported_content_encoding":
            assert "gzip" in answer.headers["accept-encoding"]
    assert service.calls == []


async def test_compressed_body_costs_what_it_expands_to(
    service: FakeService, body: dict[str, Any], tmp_path: Path
) -> None:
    keys = write(tmp_path / "keys.toml", key(SECRET, "tokens_per_minute = 1000"))
    large = body | {"messages": [{"role": "user", "content": "x" * 50_000}], "max_tokens": 1}
    headers = {
        "content-type": "application/json",
        "content-encoding": "gzip",
        "authorization": f"Bearer {SECRET}",
    }
    async with (
        started(upstream=service.target, api_keys=keys) as (_, url),
        httpx.AsyncClient(base_url=url, timeout=120) as http,
    ):
        content = gzip.compress(json.dumps(large).encode())
        answer = await http.post(CHAT, content=content, headers=headers)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "request_exceeds_limit")
    assert service.calls == []


@asynccontextmanager
async def occupied(service: FakeService) -> AsyncIterator[tuple[Bodies, Gate, str]]:
    """Run a gateway whose threads for large bodies are occupied until the gate is open."""
    async with started(upstream=service.target) as (server, url):
        app: Any = server.config.app
        bodies: Bodies = app.state.bodies
        gate = Gate()
        first = asyncio.ensure_future(decoded(bodies, Client(LARGE), gate))
        await until(lambda: bool(gate.bodies))
        yield bodies, gate, url
        await first


async def test_probes_are_answered_while_a_large_body_waits(
    service: FakeService, body: dict[str, Any]
) -> None:
    """The threads are occupied, but the event loop is free."""
    async with (
        occupied(service) as (bodies, gate, url),
        httpx.AsyncClient(base_url=url, timeout=120) as http,
    ):
        large = body | {"user": "x", "messages": [{"role": "user", "content": "x" * MIB}]}
        waiting = asyncio.ensure_future(http.post(CHAT, json=large))
        await until(lambda: bodies.num_jobs == 2)
        assert (await http.get("/healthz")).status_code == 200
        assert (await http.post(CHAT, json=body)).status_code == 200
        assert not waiting.done()
        assert await metric(http, "chatrpc_gateway_bodies_preparing", {}) == 2
        assert await metric(http, "chatrpc_gateway_body_bytes", {}) == bodies.num_bytes
        assert await metric(http, "chatrpc_gateway_body_bytes_capacity", {}) == 64 * MIB
        gate.open()
        assert (await waiting).status_code == 200


async def test_large_body_of_a_client_that_disconnects_makes_no_call(
    service: FakeService, body: dict[str, Any]
) -> None:
    async with occupied(service) as (bodies, gate, url):
        async with RawClient(url) as client:
            await client.post(body | {"messages": [{"role": "user", "content": "x" * MIB}]})
            await until(lambda: bodies.num_jobs == 2)
            await client.reset()
        await until(lambda: bodies.num_jobs == 1)
        gate.open()
    assert service.calls == []


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_large_body_counts_until_its_response_has_ended(
    service: FakeService, body: dict[str, Any], is_streamed: bool
) -> None:
    service.script = [Admit(), Hold(), Delta("x"), Finish()]
    async with started(upstream=service.target) as (server, url):
        app: Any = server.config.app
        bodies: Bodies = app.state.bodies
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            large = body | {"messages": [{"role": "user", "content": "x" * MIB}]}
            sent = len(json.dumps(large, separators=(",", ":")))
            asked = large | {"stream": is_streamed}
            answering = asyncio.ensure_future(http.post(CHAT, json=asked))
            await service.called()
            assert bodies.num_bytes > sent
            service.release()
            assert (await answering).status_code == 200
            await until(lambda: bodies.num_bytes == 0)
