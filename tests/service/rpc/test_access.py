"""Keys on the calls of a real server: who gets in, to which models, and how often."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from chatrpc.v1 import (
    chat_service_pb2,
    chat_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from chatrpc_process.keys import load_keys
from chatrpc_process.secret import digest_of
from chatrpc_process.watched import Watched
from service.rpc.access import Access
from service.rpc.lifecycle import Lifecycle
from service.rpc.server import SERVICE_NAMES, Server
from service.types import SamplingParams, ServedModel, TokenOutput
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import until
from tests.gateway_http.conftest import serving
from tests.service.rpc.conftest import CARD, params
from tests.service.rpc.details import refusal

SECRET, OTHER = "sk-chatrpc-one", "sk-chatrpc-two"
MINE = (("authorization", f"Bearer {SECRET}"),)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    write(path, f'[[key]]\nname = "one"\nsha256 = "{digest_of(SECRET)}"\n')
    return path


def limit(path: Path, line: str) -> None:
    """Add to what the file says of its only key."""
    write(path, f"{path.read_text()}{line}\n")


def write(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    path.with_suffix(".new").rename(path)


class Guarded:
    """A server that asks for keys, and a client of it."""

    def __init__(
        self, engine: FakeEngine, watched: Watched[Any], channel: grpc.aio.Channel, port: int
    ) -> None:
        self.engine = engine
        self.port = port
        self.keys = watched
        self.chat: Any = chat_service_pb2_grpc.ChatServiceStub(channel)
        self.models: Any = model_service_pb2_grpc.ModelServiceStub(channel)
        self.health: Any = health_pb2_grpc.HealthStub(channel)

    def create(self, metadata: Any = MINE, **fields: Any) -> Any:
        request = chat_service_pb2.CreateChatCompletionRequest(params=params(**fields))
        return self.chat.CreateChatCompletion(request, metadata=metadata)

    def stream(self, metadata: Any = MINE) -> Any:
        request = chat_service_pb2.StreamChatCompletionRequest(params=params())
        return self.chat.StreamChatCompletion(request, metadata=metadata)


@asynccontextmanager
async def guarded(path: Path) -> AsyncIterator[Guarded]:
    engine = FakeEngine()
    engine.answer("ok")
    watched = Watched(lambda: load_keys(path), path)
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, max_request_s=60, access=Access(watched))
    port = await server.start("127.0.0.1", 0)
    await lifecycle.serve(
        ServedModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Guarded(engine, watched, channel, port)
    await server.stop()


@pytest.mark.parametrize(
    "metadata",
    [
        MINE,
        (("authorization", f"bearer  {SECRET}"),),
        (("x-api-key", SECRET),),
    ],
)
async def test_a_known_key_gets_in(keys: Path, metadata: Any) -> None:
    async with guarded(keys) as service:
        assert (await service.create(metadata)).completion.choices


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", f"Bearer {OTHER}"),),
        (("authorization", SECRET),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {SECRET}"),),
        (("x-api-key", digest_of(SECRET)),),
    ],
)
@pytest.mark.parametrize("call", [Guarded.create, Guarded.stream])
async def test_nobody_else_does(keys: Path, metadata: Any, call: Callable[..., Any]) -> None:
    async with guarded(keys) as service:
        refused = await refusal(call(service, metadata))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        assert refused.reason == "UNAUTHENTICATED"
        assert service.engine.requests == []


async def test_models_are_for_those_who_are_known(keys: Path) -> None:
    async with guarded(keys) as service:
        request = model_service_pb2.ListModelsRequest()
        refused = await refusal(service.models.ListModels(request))
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        assert (await service.models.ListModels(request, metadata=MINE)).models


async def test_health_asks_nobody(keys: Path) -> None:
    async with guarded(keys) as service:
        answer = await service.health.Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_may_be_for_other_models(keys: Path) -> None:
    limit(keys, 'models = ["other-*"]')
    async with guarded(keys) as service:
        refused = await refusal(service.create())
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED
        assert refused.reason == "MODEL_FORBIDDEN"
        request = model_service_pb2.GetModelRequest(id="fake")
        refused = await refusal(service.models.GetModel(request, metadata=MINE))
        assert refused.code == grpc.StatusCode.PERMISSION_DENIED


async def test_requests_are_limited(keys: Path) -> None:
    limit(keys, "requests_per_minute = 2")
    async with guarded(keys) as service:
        await service.create()
        await refusal(service.create(model=""))  # it counts as well: it was let in
        refused = await refusal(service.create())
        assert refused.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.reason == "LIMIT_REACHED"
        assert 0 < (refused.retry_after_s or 0) <= 30
        assert "2 requests a minute" in refused.message


@pytest.mark.parametrize("method", ["Tokenize", "Detokenize"])
async def test_what_works_on_text_counts_as_a_request(keys: Path, method: str) -> None:
    limit(keys, "requests_per_minute = 1")
    async with guarded(keys) as service:
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)
        requests: dict[str, Any] = {
            "Tokenize": model_service_pb2.TokenizeRequest(model="fake", text="hi"),
            "Detokenize": model_service_pb2.DetokenizeRequest(model="fake", token_ids=[97]),
        }
        call = getattr(service.models, method)
        await call(requests[method], metadata=MINE)
        refused = await refusal(call(requests[method], metadata=MINE))
        assert refused.reason == "LIMIT_REACHED"
        assert (await refusal(service.create())).reason == "LIMIT_REACHED"
        await service.models.ListModels(model_service_pb2.ListModelsRequest(), metadata=MINE)


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tokens_are_counted_at_the_end(keys: Path, is_streamed: bool) -> None:
    num_tokens = len("<user>hi<assistant>") + 2
    limit(keys, f"tokens_per_minute = {num_tokens}")
    async with guarded(keys) as service:
        if is_streamed:
            assert [r async for r in service.stream()]
        else:
            await service.create()
        refused = await refusal(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "tokens a minute" in refused.message


async def test_who_leaves_before_the_answer_pays_for_what_was_computed(keys: Path) -> None:
    limit(keys, "tokens_per_minute = 10")
    async with guarded(keys) as service:
        service.engine.script = [TokenOutput((97,)), asyncio.Event()]
        call = service.create()
        await until(lambda: service.engine.num_running == 1)
        call.cancel()
        await until(lambda: service.engine.num_running == 0)
        refused = await refusal(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "tokens a minute" in refused.message


async def test_a_stream_counts_until_it_ends(keys: Path) -> None:
    limit(keys, "max_concurrent_requests = 1")
    async with guarded(keys) as service:
        go_on = asyncio.Event()
        service.engine.script.insert(1, go_on)
        call = service.stream()
        await call.read()
        refused = await refusal(service.create())
        assert refused.reason == "LIMIT_REACHED"
        assert "1 concurrent requests" in refused.message
        call.cancel()
        go_on.set()
        async with asyncio.timeout(120):
            while True:  # until the cancellation has arrived
                with suppress(grpc.aio.AioRpcError):
                    await service.create()
                    break


async def test_keys_are_read_again(keys: Path) -> None:
    async with guarded(keys) as service:
        write(keys, f'[[key]]\nname = "two"\nsha256 = "{digest_of(OTHER)}"\n')
        assert service.keys.refresh()
        refused = await refusal(service.create())
        assert refused.code == grpc.StatusCode.UNAUTHENTICATED
        await service.create((("x-api-key", OTHER),))


async def test_a_file_that_is_broken_later_changes_nothing(keys: Path) -> None:
    async with guarded(keys) as service:
        write(keys, "[[key]]\nname = 1")
        assert not service.keys.refresh()
        await service.create()


async def test_logs_name_the_key_and_never_its_secret(keys: Path) -> None:
    async with guarded(keys) as service:
        with capture_logs() as lines:
            await service.create()
            await refusal(service.create((("x-api-key", OTHER),)))
            await until(lambda: len(lines) >= 2)
    assert not any(secret in repr(lines) for secret in (SECRET, OTHER))


@pytest.mark.parametrize("name", ["authorization", "x-api-key"])
async def test_the_gateway_passes_keys_on(keys: Path, name: str) -> None:
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        secret = SECRET if name == "x-api-key" else f"Bearer {SECRET}"
        answer = await client.post("/v1/chat/completions", json=body, headers={name: secret})
        assert answer.status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_a_limit_tells_an_http_client_when_to_come_back(keys: Path) -> None:
    limit(keys, "requests_per_minute = 1")
    async with (
        guarded(keys) as service,
        serving(upstream=f"127.0.0.1:{service.port}") as url,
        httpx.AsyncClient(base_url=url, headers={"x-api-key": SECRET}) as client,
    ):
        body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        await client.post("/v1/chat/completions", json=body)
        refused = await client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 0 < int(refused.headers["retry-after"]) <= 60
