"""A model that fails, is lost or hangs: the errors on both wires, and requests that continue."""

import grpc
import pytest

from tests.support.programs import Client, Gateway, Launch, Service, body
from tests.support.raw_http import RawClient
from tests.support.rpc_errors import rpc_error
from tests.support.running_requests import HIDDEN, LONG, running_requests


async def test_failed_step_ends_only_its_requests(launch: Launch) -> None:
    service = launch(Service())
    await service.ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with Client(service.target) as client, RawClient(gateway.url) as http:
        stream = client.stream(num_tokens=LONG)
        await anext(aiter(stream))
        await http.post(body(num_tokens=LONG, stream=True))
        await http.read_until(b'"content":"a')

        culprit = await rpc_error(client.create("!fail"))
        beside = await rpc_error(stream)
        events = await http.read_until(b"[DONE]")
        for error in (culprit, beside):
            assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "STEP_FAILED")
            assert HIDDEN not in repr(error)
        assert b'"error":{' in events
        assert b'"server_error"' in events
        assert HIDDEN.encode() not in events

        assert (await client.create()).completion.usage.completion_tokens == 3
        await service.idle()
    assert service.is_running
    assert len(service.events("step_failed")) == 1
    assert HIDDEN in service.log  # only the log contains it


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["!lose", "!hang"])
async def test_lost_or_hanging_engine_fails_all_requests_and_ends_the_process(
    launch: Launch, fault: str
) -> None:
    service = launch(Service("--step-timeout-s", "1"))
    await service.ready()
    gateway = await launch(Gateway(upstream=service.target)).ready()
    async with running_requests(service, gateway) as running:
        culprit = await rpc_error(running.client.create(fault))
        assert (culprit.code, culprit.reason) == (grpc.StatusCode.INTERNAL, "ENGINE_DEAD")
        assert HIDDEN not in repr(culprit)
        await running.fail_as_engine_dead(service)
    assert len(service.events("engine_hangs" if fault == "!hang" else "engine_failed")) == 1
