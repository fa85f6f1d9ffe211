"""A service whose upstream is killed or stopped: a gateway of another service of our own."""

import asyncio
import json
import signal
from dataclasses import dataclass

import pytest

from tests.fakes.wait import failsafe
from tests.support.programs import (
    Client,
    Gateway,
    Launch,
    RealService,
    Service,
    body,
    http_client,
)
from tests.support.raw_http import RawClient

pytestmark = pytest.mark.slow

LONG = 50_000


@dataclass
class Chain:
    """A service with a model and its gateway, which is the upstream of another such pair."""

    remote: Service
    remote_gateway: Gateway
    service: RealService
    gateway: Gateway

    async def is_ready(self, *, is_ready: bool) -> None:
        """Wait until the model is ready, or not."""
        async with http_client(self.gateway.url) as http, failsafe():
            while ((await http.get("/readyz")).status_code == 200) != is_ready:
                await asyncio.sleep(0.02)

    async def is_served(self) -> None:
        async with http_client(self.gateway.url) as http:
            response = await http.post("/v1/chat/completions", json=body())
            assert response.status_code == 200, response.text

    async def idle(self) -> None:
        for program in (self.gateway, self.service, self.remote):
            await program.idle()


async def chain(launch: Launch, *options: str) -> Chain:
    remote = await launch(Service()).ready()
    remote_gateway = await launch(Gateway(upstream=remote.target)).ready()
    upstream = ("--engine", "openai", "--upstream-url", remote_gateway.url)
    service = await launch(RealService(*upstream, *options)).ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    return Chain(remote, remote_gateway, service, gateway)


async def failed_stream(links: Chain, number: signal.Signals) -> str:
    """Send a signal to the remote gateway during a stream. Return the stream's error code."""
    async with RawClient(links.gateway.url) as stream:
        await stream.post(body(num_tokens=LONG, stream=True))
        await stream.read_until(b'"content":"a')
        links.remote_gateway.send(number)
        received = await stream.read_until(b"data: [DONE]\n\n")
    event = received.decode().split("data: ")[-2].partition("\n")[0]
    assert "127.0.0.1" not in event
    return str(json.loads(event)["error"]["code"])


async def test_killed_upstream_ends_its_streams_and_is_used_again(launch: Launch) -> None:
    links = await chain(launch)
    await links.is_served()
    assert await failed_stream(links, signal.SIGKILL) == "service_unavailable"
    async with http_client(links.gateway.url) as http:
        response = await http.post("/v1/chat/completions", json=body())
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        await links.is_ready(is_ready=False)
        assert (await http.get("/healthz")).status_code == 200
    port = int(links.remote_gateway.url.rpartition(":")[2])
    await launch(Gateway(upstream=links.remote.target, port=port)).ready()
    await links.is_ready(is_ready=True)
    await links.is_served()
    await links.idle()
    assert links.service.is_running
    down = links.service.events("upstream_failed")
    assert down
    assert links.service.events("upstream_is_back")


async def test_stopped_upstream_ends_its_streams_and_continues(launch: Launch) -> None:
    links = await chain(launch, "--upstream-read-timeout-s", "0.5")
    assert await failed_stream(links, signal.SIGSTOP) == "service_unavailable"
    links.remote_gateway.send(signal.SIGCONT)
    await links.remote.idle()
    await links.is_ready(is_ready=True)
    await links.is_served()
    await links.idle()


async def test_cancelled_call_leaves_nothing_at_the_upstream(launch: Launch) -> None:
    links = await chain(launch)
    async with RawClient(links.gateway.url) as stream, Client(links.service.target) as client:
        await stream.post(body(num_tokens=LONG, stream=True))
        await stream.read_until(b'"content":"a')
        whole = asyncio.ensure_future(_completed(client))
        async with failsafe():
            while (await links.remote.metrics())["chatrpc_sequences_running"] < 2:
                await asyncio.sleep(0.01)
        whole.cancel()
    await asyncio.gather(whole, return_exceptions=True)
    await links.idle()
    assert (await links.service.metrics())["chatrpc_aborted_requests_total"] == 2
    assert (await links.remote.metrics())["chatrpc_aborted_requests_total"] == 2


async def _completed(client: Client) -> None:
    await client.create(num_tokens=LONG)


async def test_drain_finishes_the_streams_of_an_upstream(launch: Launch) -> None:
    links = await chain(launch)
    async with RawClient(links.gateway.url) as stream:
        await stream.post(body(num_tokens=300, stream=True))
        await stream.read_until(b'"content":"a')
        links.service.send(signal.SIGTERM)
        received = await stream.read_until(b"data: [DONE]\n\n")
        assert b'"finish_reason":"length"' in received
    assert await links.service.ended() == 0
    await links.remote.idle()
