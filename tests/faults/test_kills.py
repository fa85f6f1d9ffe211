"""A service or a gateway that is killed during requests."""

import asyncio
import json
import signal

import pytest

from tests.fakes.wait import failsafe
from tests.support.programs import Client, Gateway, Launch, Service, body, http_client
from tests.support.raw_http import RawClient

pytestmark = pytest.mark.slow

LONG = 50_000


async def test_gateway_survives_a_killed_service_and_uses_its_successor(launch: Launch) -> None:
    service = await launch(Service()).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with http_client(gateway.url) as http:
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        num_fds = gateway.num_fds
        async with RawClient(gateway.url) as stream:
            await stream.post(body(num_tokens=LONG, stream=True))
            await stream.read_until(b'"content":"a')
            whole = asyncio.create_task(
                http.post("/v1/chat/completions", json=body(num_tokens=LONG))
            )
            async with failsafe():
                while (await service.metrics())["chatrpc_sequences_running"] < 2:
                    await asyncio.sleep(0.01)
            service.send(signal.SIGKILL)
            told = await stream.read_until(b"data: [DONE]\n\n")
        event = told.decode().split("data: ")[-2].partition("\n")[0]
        assert json.loads(event)["error"]["code"] == "service_unavailable"
        assert "127.0.0.1" not in event

        for response in (await whole, await http.post("/v1/chat/completions", json=body())):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "service_unavailable"
        assert (await http.get("/readyz")).status_code == 503
        assert (await http.get("/healthz")).status_code == 200

        again = launch(Service(port=service.port))
        await again.ready()
        async with failsafe():
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        await gateway.idle()
        await gateway.has_fds(num_fds)


async def test_successor_with_another_model_rejects_the_name_of_the_former(launch: Launch) -> None:
    service = await launch(Service()).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with http_client(gateway.url) as http:
        assert (await http.post("/v1/chat/completions", json=body())).status_code == 200
        service.send(signal.SIGKILL)
        await service.ended()
        await launch(Service(port=service.port, model_id="other")).ready()
        async with failsafe():
            while (await http.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.02)
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["other"]
        former = await http.post("/v1/chat/completions", json=body())
        assert former.status_code == 404
        assert former.json()["error"]["code"] == "model_not_found"
        created = await http.post("/v1/chat/completions", json=body(model="other"))
        assert created.json()["model"] == "other"


async def test_killed_gateway_frees_its_requests_in_the_service(launch: Launch) -> None:
    service = await launch(Service("--max-num-seqs", "2")).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    num_fds = service.num_fds
    async with (
        RawClient(gateway.url) as running,
        RawClient(gateway.url) as beside,
        RawClient(gateway.url) as queued,
        Client(service.target) as client,
    ):
        for stream in (running, beside):
            await stream.post(body(num_tokens=LONG, stream=True))
            await stream.read_until(b'"content":"a')
        await queued.post(body(num_tokens=LONG, stream=True))
        async with failsafe():
            while not (await service.metrics())["chatrpc_sequences_waiting"]:
                await asyncio.sleep(0.01)
        gateway.send(signal.SIGKILL)
        await service.idle()
        assert (await service.metrics())["chatrpc_aborted_requests_total"] == 3
        assert (await client.create()).completion.usage.completion_tokens == 3
    await service.has_fds(num_fds)
