"""Routing of many models by a registry that changes."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import structlog

from chatrpc.v1 import chat_pb2, chat_service_pb2
from gateway_http.app import Environment
from gateway_http.metrics import Metrics
from gateway_http.upstream.call_metadata import CallMetadata
from gateway_http.upstream.client import Upstream
from gateway_http.upstream.connection import Connection
from gateway_http.upstream.registry import RegisteredModel
from gateway_http.upstream.router import Router
from gateway_http.upstream.rpcs import STREAM_CHAT_COMPLETION
from tests.fakes.chat_service import MODEL, Delta, Fail, FakeService, Finish, Hold
from tests.fakes.wait import until
from tests.gateway_http.replicas import replica
from tests.support.gateway import metric, serving

NOWHERE = "127.0.0.1:1"


def entry(name: str, target: str, *more: str) -> str:
    return "\n".join(["[[model]]", f'name = "{name}"', f'target = "{target}"', *more, ""])


class File:
    """A registry file. Each written text gets a later modification time than the one before."""

    def __init__(self, directory: Path, *entries: str) -> None:
        self.path = directory / "registry.toml"
        self._mtime_s = 1
        self.write(*entries)

    def write(self, *entries: str) -> None:
        new = self.path.with_suffix(".new")
        new.write_text("\n".join(entries))
        self._mtime_s += 1
        os.utime(new, (self._mtime_s, self._mtime_s))
        new.replace(self.path)


@asynccontextmanager
async def gateway(file: File, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    # Idle connections may end just when they are used.
    fresh = httpx.Limits(max_keepalive_connections=0)
    async with (
        serving(environment=Environment(poll_s=0.01), registry=file.path, **options) as url,
        httpx.AsyncClient(base_url=url, timeout=60, limits=fresh, verify=False) as http,  # noqa: S501  # plain
    ):
        yield http


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


async def text_and_model(http: httpx.AsyncClient, model: str, **fields: Any) -> tuple[str, str]:
    """Return the text of a completion, which is the replica's name, and the model's name."""
    answer = await http.post("/v1/chat/completions", json=chat(model, **fields))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["choices"][0]["message"]["content"], body["model"]


async def test_every_name_is_routed_to_its_service(tmp_path: Path) -> None:
    async with replica("a", "one-135m") as a, replica("b", "org/two") as b:
        file = File(
            tmp_path,
            entry("one", a.address, 'upstream_model = "one-135m"', 'aliases = ["gpt-4o-mini"]'),
            entry("org/two", b.address),
        )
        async with gateway(file) as http:
            assert await text_and_model(http, "one") == ("a", "one")
            assert await text_and_model(http, "gpt-4o-mini") == ("a", "one")
            assert await text_and_model(http, "org/two") == ("b", "org/two")

            async with http.stream(
                "POST", "/v1/chat/completions", json=chat("gpt-4o-mini", stream=True)
            ) as stream:
                events = [line[6:] async for line in stream.aiter_lines() if line]
            assert {json.loads(event)["model"] for event in events[:-1]} == {"one"}

            answer = await http.post("/v1/completions", json={"model": "one", "prompt": "x"})
            assert (answer.json()["model"], answer.json()["choices"][0]["text"]) == ("one", "a")
            tokens = {"model": "gpt-4o-mini", "prompt": "xyz", "add_special_tokens": False}
            assert (await http.post("/tokenize", json=tokens)).json()["count"] == 3
            assert (await http.post("/tokenize", json={"content": "xyz"})).json()["count"] == 3
            text = await http.post("/detokenize", json={"model": "org/two", "tokens": [120]})
            assert text.json()["prompt"] == "x"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat("none")),
        ("/v1/chat/completions", chat("none", stream=True)),
        ("/v1/completions", {"model": "none", "prompt": "x"}),
        ("/tokenize", {"model": "none", "prompt": "x"}),
        ("/detokenize", {"model": "none", "tokens": [1]}),
        ("/v1/models/none", None),
    ],
)
async def test_unknown_name_is_rejected(
    tmp_path: Path, path: str, body: dict[str, Any] | None
) -> None:
    async with gateway(File(tmp_path, entry("one", NOWHERE))) as http:
        answer = await (http.get(path) if body is None else http.post(path, json=body))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "`none`" in error["message"]


async def test_model_list_is_the_registry(tmp_path: Path) -> None:
    async with replica("a", "one-135m") as a:
        file = File(
            tmp_path,
            entry("one", a.address, 'upstream_model = "one-135m"', 'aliases = ["uno"]'),
            entry("away", NOWHERE),
        )
        async with gateway(file) as http:
            page = (await http.get("/v1/models")).json()
            one, away = page["data"]
            assert (one["id"], one["max_model_len"]) == ("one", 1000)
            assert (away["id"], away["object"]) == ("away", "model")
            assert "max_model_len" not in away  # its service cannot be reached
            assert (await http.get("/v1/models/uno")).json() == one
            assert (await http.get("/v1/models/away")).json() == away


async def test_ready_when_one_service_is(tmp_path: Path) -> None:
    file = File(tmp_path, entry("away", NOWHERE))
    async with replica("a", "one") as a, gateway(file) as http:
        assert (await http.get("/readyz")).status_code == 503
        file.write(entry("away", NOWHERE), entry("one", a.address))

        async def is_ready() -> bool:
            return (await http.get("/readyz")).status_code == 200

        async with asyncio.timeout(120):
            while not await is_ready():
                await asyncio.sleep(0.01)
        assert await metric(http, "chatrpc_gateway_upstream_ready", {"model": "away"}) == 0
        assert await metric(http, "chatrpc_gateway_upstream_ready", {"model": "one"}) == 1


async def test_calls_are_counted_by_name_and_outcome(tmp_path: Path) -> None:
    async with replica("a", "one") as a:
        file = File(tmp_path, entry("one", a.address, 'aliases = ["uno"]'), entry("away", NOWHERE))
        async with gateway(file) as http:
            await text_and_model(http, "uno")
            assert (await http.post("/v1/chat/completions", json=chat("away"))).status_code == 503
            tokenized = await http.post("/tokenize", json={"model": "away", "prompt": "a"})
            assert tokenized.status_code == 503
            await http.post("/v1/chat/completions", json=chat("none"))
            name = "chatrpc_gateway_upstream_requests_total"
            assert await metric(http, name, {"model": "one", "code": "OK"}) == 1
            assert await metric(http, name, {"model": "away", "code": "UNAVAILABLE"}) == 2
            assert '"none"' not in (await http.get("/metrics")).text


async def test_disconnected_client_is_counted(tmp_path: Path) -> None:
    async with replica("a", "one") as a, gateway(File(tmp_path, entry("one", a.address))) as http:
        a.engine.hold()
        for stream in (False, True):
            call = http.post("/v1/chat/completions", json=chat("one", stream=stream))
            asking = asyncio.ensure_future(call)
            await until(lambda: a.engine.num_running == 1)
            asking.cancel()
            await until(lambda: a.engine.num_running == 0)
        counted = {"model": "one", "code": "CANCELLED"}
        assert await metric(http, "chatrpc_gateway_upstream_requests_total", counted) == 2


async def test_upstreams_own_key_replaces_the_callers(tmp_path: Path, service: FakeService) -> None:
    (tmp_path / "api.key").write_text("sk-upstream\n")
    file = File(
        tmp_path,
        entry(MODEL, service.target, 'api_key_file = "api.key"'),
        entry("plain", service.target, f'upstream_model = "{MODEL}"'),
    )
    async with gateway(file) as http:
        for name in (MODEL, "plain"):
            for shown in ({"authorization": "Bearer sk-caller"}, {"x-api-key": "sk-caller"}):
                await http.post("/v1/chat/completions", json=chat(name), headers=shown)
    first, second, third, fourth = (call.metadata for call in service.calls)
    assert first["authorization"] == second["authorization"] == "Bearer sk-upstream"
    assert third["authorization"] == fourth["authorization"] == "Bearer sk-caller"
    assert "x-api-key" not in {*second, *fourth}


async def test_missing_model_is_reported_under_its_registered_name(
    tmp_path: Path, service: FakeService
) -> None:
    file = File(tmp_path, entry("one", service.target, f'upstream_model = "{MODEL}"'))
    async with gateway(file) as http:
        service.models = []
        answer = await http.get("/v1/models/one")
        assert (await http.get("/v1/models")).json()["data"] == []
    assert answer.status_code == 404
    assert "`one`" in answer.json()["error"]["message"]


async def test_models_that_are_not_for_a_caller_are_left_out(
    tmp_path: Path, service: FakeService
) -> None:
    service.model_error = Fail(grpc.StatusCode.UNAUTHENTICATED, "A key.", "UNAUTHENTICATED")
    guarded = entry("guarded", service.target, f'upstream_model = "{MODEL}"')
    file = File(tmp_path, guarded, entry("away", NOWHERE))
    async with gateway(file) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["away"]
        file.write(guarded)
        async with asyncio.timeout(120):
            while (answer := await http.get("/v1/models")).status_code == 200:
                await asyncio.sleep(0.01)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"


async def test_moving_a_model_loses_no_request(tmp_path: Path) -> None:
    async with replica("old", "m-1") as old, replica("new", "m-2") as new:
        old.engine.hold_after_first()
        before = entry("m", old.address, 'upstream_model = "m-1"')
        after = entry("m", new.address, 'upstream_model = "m-2"')
        file = File(tmp_path, before)
        async with (
            gateway(file) as http,
            http.stream("POST", "/v1/chat/completions", json=chat("m", stream=True)) as stream,
        ):
            lines = stream.aiter_lines()
            while '">"' not in await anext(lines):
                pass
            old.engine.script = old.engine.script[-1:]  # later requests end at once
            asked, switched = 0, asyncio.Event()

            async def ask() -> None:
                nonlocal asked
                while not switched.is_set():
                    text, model = await text_and_model(http, "m")
                    assert (text in {"new", "."}, model) == (True, "m")
                    asked += 1

            asking = [asyncio.ensure_future(ask()) for _ in range(4)]
            for text in (after, before, after):
                file.write(text)
                beyond = asked + 20
                await until(lambda beyond=beyond: asked > beyond)  # type: ignore[misc]
            await until(lambda: new.engine.num_asked > 20)
            switched.set()
            await asyncio.gather(*asking)
            assert await text_and_model(http, "m") == ("new", "m")

            old.engine.go.set()
            rest = "".join([line async for line in lines])
            assert '"."' in rest
            assert rest.endswith("data: [DONE]")


def has_failed(logs: list[Any]) -> bool:
    return any(log["event"] == "file_reload_failed" for log in logs)


async def test_corrupt_change_keeps_the_last_entries(tmp_path: Path) -> None:
    async with replica("a", "one") as a, replica("b", "two") as b:
        file = File(tmp_path, entry("one", a.address))
        async with gateway(file) as http:
            for corrupt in ("", "[[model", entry("one", "ipv4:nowhere:1")):
                with structlog.testing.capture_logs() as logs:
                    file.write(corrupt)
                    await until(lambda logs=logs: has_failed(logs))  # type: ignore[misc]
                assert await text_and_model(http, "one") == ("a", "one")
            file.write(entry("two", b.address))
            async with asyncio.timeout(120):
                while [m["id"] for m in (await http.get("/v1/models")).json()["data"]] != ["two"]:
                    await asyncio.sleep(0.01)
            assert await text_and_model(http, "two") == ("b", "two")


async def test_channel_is_closed_after_its_last_call(service: FakeService) -> None:
    service.script = [Delta("Hello"), Hold(), Delta("!"), Finish()]
    here, there = (
        RegisteredModel(Connection(target), "m", upstream_model=MODEL)
        for target in (service.target, NOWHERE)
    )
    router = Router([here], Metrics())
    params = chat_pb2.ChatCompletionParams(model=MODEL)
    request = chat_service_pb2.StreamChatCompletionRequest(params=params)
    metadata = CallMetadata("r")
    with router.route("m") as route:
        chunks = route.stream(STREAM_CHAT_COMPLETION, request, metadata, timeout_s=60)
        assert (await anext(chunks)) is not None
        router.adopt([here])
        with router.route("m") as same:
            assert same.upstream is route.upstream
        router.adopt([there])
        with router.route("m") as other:
            assert other.upstream is not route.upstream
        service.release()
        rest = [chunk async for chunk in chunks]
        assert rest[-1] is not None
    # The channel fails, or the call on it.
    upstream = route.upstream
    assert isinstance(upstream, Upstream)
    with pytest.raises((grpc.aio.UsageError, asyncio.CancelledError)):
        while True:
            await upstream.is_ready(10)
    await router.close()


async def test_readiness_check_of_a_removed_service_is_false() -> None:
    """The services do not respond, and are removed from the table or closed meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        here, there = (
            RegisteredModel(Connection(f"127.0.0.1:{silent.getsockname()[1]}"), n) for n in "ab"
        )
        here = replace(here, connection=replace(here.connection, health_name="a"))
        router = Router([here, there], Metrics())

        async def asking(timeout_s: float) -> "asyncio.Task[bool]":
            task = asyncio.ensure_future(router.is_ready(timeout_s))
            for _ in range(3):  # let the calls start
                await asyncio.sleep(0)
            return task

        answer = await asking(0.5)
        router.adopt([there])
        assert await answer is False
        answer = await asking(60)
        await router.close()
        assert await answer is False
