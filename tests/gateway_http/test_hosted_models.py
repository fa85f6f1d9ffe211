"""A gateway that hosts models, over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chatrpc_process.errors import ConfigError
from gateway_http.app import Environment, build_app
from gateway_http.config import Settings
from tests.fakes.chat_service import model
from tests.fakes.model_processes import FakeLauncher
from tests.fakes.wait import until
from tests.support.gateway import metric, serving

REGISTRY = """
[[model]]
name = "a"
aliases = ["first"]
model = "models/a"
memory = 1

[[model]]
name = "b"
model = "models/b"
memory = 1
"""


@pytest.fixture
async def launcher() -> FakeLauncher:
    return FakeLauncher()


@pytest.fixture
async def http(launcher: FakeLauncher, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    registry = tmp_path / "registry.toml"
    registry.write_text(REGISTRY)
    options: dict[str, Any] = {"registry": registry, "models_memory": 1, "model_idle_timeout_s": 0}
    async with (
        serving(environment=Environment(launch=launcher), **options) as url,
        httpx.AsyncClient(base_url=url) as client,
    ):
        yield client


def body(name: str, **fields: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": "Hi"}], **fields}


async def complete(http: httpx.AsyncClient, name: str, **fields: Any) -> httpx.Response:
    return await http.post("/v1/chat/completions", json=body(name, **fields))


async def states(http: httpx.AsyncClient) -> dict[str, str]:
    listed = (await http.get("/v1/models")).json()["data"]
    return {model["id"]: model["status"]["value"] for model in listed}


async def test_models_are_loaded_by_requests_and_replaced_over_the_budget(
    http: httpx.AsyncClient, launcher: FakeLauncher
) -> None:
    assert (await http.get("/readyz")).status_code == 200
    assert await states(http) == {"a": "unloaded", "b": "unloaded"}
    assert launcher.started == []
    answer = (await complete(http, "first")).json()
    assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("a", "Hello world")
    assert await states(http) == {"a": "loaded", "b": "unloaded"}
    assert (await complete(http, "b", stream=True)).text.endswith("data: [DONE]\n\n")
    assert await states(http) == {"a": "unloaded", "b": "loaded"}
    assert await metric(http, "chatrpc_gateway_upstream_ready", {"model": "b"}) == 1
    assert await metric(http, "chatrpc_gateway_hosted_model_loaded", {"model": "a"}) == 0


async def test_description_of_an_unloaded_model_is_the_last_known_one(
    http: httpx.AsyncClient,
) -> None:
    async def described() -> dict[str, Any]:
        found: dict[str, Any] = (await http.get("/v1/models/first")).json()
        return found

    assert "max_model_len" not in await described()
    assert (await described())["owned_by"] == "chatrpc"
    await complete(http, "a")
    known = await described()
    assert (known["max_model_len"], known["aliases"]) == (model().max_model_len, ["first"])
    await complete(http, "b")
    assert await described() == {**known, "status": {"value": "unloaded"}}


async def test_waiting_stream_gets_comments_before_the_response(launcher: FakeLauncher) -> None:
    launcher.is_held = True
    sent = body("a", stream=True)
    environment = Environment(launch=launcher)
    async with (
        serving(environment=environment, models=["a"], sse_ping_interval_s=0.05) as url,
        httpx.AsyncClient(base_url=url) as http,
        http.stream("POST", "/v1/chat/completions", json=sent) as response,
    ):
        lines = response.aiter_lines()
        assert (await anext(lines)).startswith(": a is loading for ")
        await launcher.processes[0].service.set_ready(True)
        rest = [line async for line in lines]
    assert rest[-2:] == ["data: [DONE]", ""]


async def test_failed_start_is_an_error_with_the_reason(
    http: httpx.AsyncClient, launcher: FakeLauncher
) -> None:
    launcher.is_held = True
    waiting = asyncio.ensure_future(complete(http, "a", stream=True))
    await until(lambda: bool(launcher.processes))
    launcher.processes[0].end("There is no model 'models/a'.")
    failed = await waiting
    assert failed.status_code == 503
    assert failed.headers["retry-after"] == "1"
    assert failed.json()["error"] == {
        "message": "The model `a` could not be loaded: There is no model 'models/a'.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "model_load_failed",
    }
    status = (await http.get("/v1/models/a")).json()["status"]
    assert status == {"value": "unloaded", "failure": "There is no model 'models/a'."}
    launcher.is_held = False
    assert (await complete(http, "b")).status_code == 200


async def test_client_that_leaves_does_not_wait_any_more(
    http: httpx.AsyncClient, launcher: FakeLauncher
) -> None:
    launcher.is_held = True
    leaving = asyncio.ensure_future(complete(http, "a"))

    async def num_waiting() -> float:
        name = "chatrpc_gateway_hosted_model_waiting_requests"
        return await metric(http, name, {"model": "a"})

    async def is_waiting() -> bool:
        return await num_waiting() == 1

    async def has_left() -> bool:
        return await num_waiting() == 0

    await until(is_waiting)
    leaving.cancel()
    await until(has_left)


async def test_models_of_the_command_line_are_hosted(launcher: FakeLauncher) -> None:
    async with (
        serving(environment=Environment(launch=launcher), models=["x=a", "b"]) as url,
        httpx.AsyncClient(base_url=url) as http,
    ):
        assert await states(http) == {"x": "unloaded", "b": "unloaded"}
        tokens = await http.post("/tokenize", json={"prompt": "a"})
        assert tokens.status_code == 200
        assert launcher.started == ["x"]
    assert launcher.running == []


def test_models_with_one_name_are_an_error_of_the_start() -> None:
    with pytest.raises(ConfigError, match="two models are called 'x'"):
        build_app(Settings(models=["x=a", "x=b"]))


@pytest.mark.parametrize("other", [["--registry", "r.toml"], ["--upstream", "a:1"]])
def test_models_have_one_source(other: list[str]) -> None:
    with pytest.raises(ConfigError, match="cannot be given together"):
        Settings.load(["--models", "a,b", *other])
