"""A service and a gateway that require keys serve only probes without one."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import grpc
import httpx
import pytest

from chatrpc_process.access.secret import digest_of
from gateway_http.endpoints import ENDPOINTS
from gateway_http.http.api_style import ANTHROPIC
from gateway_http.http.endpoint import Endpoint
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.support.programs import Client, Gateway, Service, body, http_client

KEY = "sk-chatrpc-of-somebody"
MINE = (("authorization", f"Bearer {KEY}"),)
OPEN = {"grpc.health.v1.Health", "xds.service.orca.v3.OpenRcaService"}

WRONG: dict[str, Any] = {
    "none": (),
    "wrong": (("authorization", "Bearer sk-chatrpc-of-nobody"),),
    "empty": (("authorization", ""), ("x-api-key", "")),
    "bare": (("authorization", "Bearer"),),
    "spaces": (("authorization", "Bearer    "),),
    "prefix": (("authorization", f"Bearer {KEY[:-1]}"),),
    "longer": (("authorization", f"Bearer {KEY}x"),),
    "hash": (("x-api-key", digest_of(KEY)),),
    "basic": (("authorization", f"Basic {KEY}"),),
    "huge": (("x-api-key", "x" * 6000),),
    "binary": (("authorization-bin", f"Bearer {KEY}".encode()), ("x-api-key-bin", KEY.encode())),
    "several": tuple(("x-api-key", f"sk-{i}") for i in range(30)),
    "wrong before right": (("authorization", "Bearer sk-chatrpc-of-nobody"), ("x-api-key", KEY)),
    "other names": (("api-key", KEY), ("cookie", f"authorization={KEY}")),
}


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write_text(f'[[key]]\nname = "somebody"\nsha256 = "{digest_of(KEY)}"\n')
    service = Service("--api-keys", str(keys), "--max-model-len", "64")
    yield service
    service.close()


@pytest.fixture
async def service(launched: Service) -> Service:
    return await launched.ready()


@pytest.fixture(scope="module")
def launched_gateway(launched: Service) -> Iterator[Gateway]:
    asyncio.run(launched.ready())
    gateway = Gateway(upstream=launched.target)
    yield gateway
    gateway.close()


@pytest.fixture
async def http(launched_gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    await launched_gateway.ready()
    async with http_client(launched_gateway.url) as http:
        yield http


class Recorder:
    """A replacement of `grpc.aio.Server` that keeps its handlers by path."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[Any]) -> None:
        for each in handlers:
            self.handlers |= each._method_handlers

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers |= {f"/{service}/{name}": handler for name, handler in handlers.items()}


@pytest.fixture
def handlers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the handlers of all methods, also of those that reflection does not list."""
    monkeypatch.setattr(grpc.aio, "server", lambda **_: Recorder())
    server: Any = Server(Lifecycle(SERVICE_NAMES), request_timeout_s=1)
    found: dict[str, Any] = server._server.handlers
    return found


async def status(client: Client, path: str, handler: Any, metadata: Any) -> grpc.StatusCode:
    try:
        if handler.request_streaming:
            call: Any = client.channel.stream_stream(path)(metadata=metadata)
            if metadata is MINE:  # the others are rejected earlier, so a write would fail
                await call.write(b"")
            await call.read()
        elif handler.response_streaming:
            call = client.channel.unary_stream(path)(b"", metadata=metadata)
            await call.read()
        else:
            call = client.channel.unary_unary(path)(b"", metadata=metadata)
            await call
        call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_grpc_methods_except_probes_require_a_key(
    service: Service, handlers: dict[str, Any]
) -> None:
    names = {path.split("/")[1] for path in handlers}
    reflection = {f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")}
    assert names == {*SERVICE_NAMES, *OPEN, *reflection}
    async with Client(service.target) as client:
        for path, handler in handlers.items():
            is_open = path.split("/")[1] in OPEN
            with_key = await status(client, path, handler, MINE)
            assert with_key is not grpc.StatusCode.UNAUTHENTICATED, path
            for label, metadata in WRONG.items():
                code = await status(client, path, handler, metadata)
                expected = with_key if is_open else grpc.StatusCode.UNAUTHENTICATED
                assert code is expected, (path, label)
    assert (await service.metrics())["chatrpc_steps_total"] == 0
    assert KEY not in service.log


async def test_unknown_grpc_method_is_unimplemented_without_a_key(service: Service) -> None:
    async with Client(service.target) as client:
        for path in ("/chatrpc.v1.ChatService/Nothing", "/chatrpc.v2.ChatService/X", "/x", "/", ""):
            with pytest.raises((grpc.aio.AioRpcError, ValueError)) as caught:
                await client.channel.unary_unary(path)(b"")
            if isinstance(caught.value, grpc.aio.AioRpcError):
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


HTTP_WRONG: dict[str, list[tuple[str, str]]] = {
    "none": [],
    "wrong": [("authorization", "Bearer sk-chatrpc-of-nobody")],
    "empty": [("authorization", ""), ("x-api-key", "")],
    "prefix": [("authorization", f"Bearer {KEY[:-1]}")],
    "hash": [("x-api-key", digest_of(KEY))],
    "huge": [("authorization", "Bearer " + "x" * 6000)],
    "binary": [("authorization", "Bearer \xff\xfe\x80")],
    "several": [("authorization", f"Bearer {i}") for i in range(30)],
    "other names": [("api-key", KEY), ("cookie", f"authorization={KEY}")],
}
# The tag of endpoints that return nothing about models and call no service for the caller.
HTTP_OPEN = {"Operate"}
# The tag of endpoints that call no service. Here only the service has keys, so the gateway finds
# no response of an unknown key.
HTTP_OWN = {"Stored responses"}
BODIES = {
    "create_chat_completion": body(),
    "create_completion": {"model": "fake", "prompt": "hi"},
    "create_response": {"model": "fake", "input": "hi"},
    "count_input_tokens": {"model": "fake", "input": "hi"},
    "create_message": body(),
    "count_message_tokens": {"model": "fake", "messages": [{"role": "user", "content": "hi"}]},
    "create_embeddings": {"model": "fake", "input": "hi"},
    "rerank": {"model": "fake", "query": "hi", "documents": ["a"]},
    "rerank_v2": {"model": "fake", "query": "hi", "documents": ["a"]},
    "score": {"model": "fake", "text_1": "hi", "text_2": "ho"},
    "classify": {"model": "fake", "input": "hi"},
    "create_decision": {
        "model": "fake",
        "input": "hi",
        "questions": [{"type": "predicate", "instructions": "It is a greeting."}],
    },
    "tokenize": {"model": "fake", "prompt": "hi"},
    "detokenize": {"model": "fake", "tokens": [1]},
}
# Requests that the model does not support. They are rejected after the key was accepted.
HTTP_UNSUPPORTED = {"create_embeddings", "rerank", "rerank_v2", "score", "classify"}
# Requests whose prompt is too long for the model's context.
HTTP_TOO_LONG = {"create_decision"}
# Requests for a response that does not exist.
HTTP_MISSING = {"retrieve_response", "delete_response", "list_input_items"}


@pytest.mark.parametrize("prefix", ["/v1", ""])
@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.name)
async def test_http_routes_except_operations_require_a_key(
    http: httpx.AsyncClient, endpoint: Endpoint, prefix: str
) -> None:
    path = prefix + re.sub(r"{\w+}", "fake", endpoint.path)
    sent = BODIES.get(endpoint.name)
    for headers in ([("authorization", f"Bearer {KEY}")], [("x-api-key", KEY)]):
        response = await http.request(endpoint.method, path, json=sent, headers=headers)
        expected_status = 400 if endpoint.name in HTTP_UNSUPPORTED | HTTP_TOO_LONG else 200
        if endpoint.name in HTTP_MISSING:
            expected_status = 404
        assert response.status_code == expected_status
    for label, wrong in HTTP_WRONG.items():
        raw = [(name.encode(), value.encode("latin-1")) for name, value in wrong]
        response = await http.request(endpoint.method, path, json=sent, headers=raw)
        if endpoint.tag in HTTP_OPEN:
            assert response.status_code == 200, label
        elif endpoint.tag in HTTP_OWN:
            assert response.status_code == 404, label
        else:
            assert response.status_code == 401, label
            error = response.json()["error"]
            expected = {"code": "invalid_api_key"}
            if endpoint.style is ANTHROPIC:
                expected = {"type": "authentication_error"}
            assert expected.items() <= error.items()
            assert KEY not in response.text
