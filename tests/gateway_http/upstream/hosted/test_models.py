"""Hosted models over fake processes: loading, unloading, waiting, failures and the end."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest

from chatrpc.v1 import chat_service_pb2
from gateway_http.metrics import Metrics
from gateway_http.protocol.error import ApiError
from gateway_http.upstream.client import CallOptions
from gateway_http.upstream.hosted.models import HostedModels, HostingOptions
from gateway_http.upstream.hosted.schedule import State
from gateway_http.upstream.registry import HostedModel
from gateway_http.upstream.rpcs import CREATE_CHAT_COMPLETION, STREAM_CHAT_COMPLETION
from tests.fakes.chat_service import Delta, Finish, Hold
from tests.fakes.model_processes import FakeLauncher
from tests.fakes.wait import until

A, B, C = (HostedModel(name, f"models/{name}", memory_bytes=1) for name in "abc")
NEVER = HostingOptions(idle_timeout_s=0)
SMALL = replace(NEVER, budget_bytes=1)
HOLDING = (Delta("Hello"), Hold(), Finish())
OPTIONS = CallOptions(60)


class Rig:
    def __init__(self, options: HostingOptions, *models: HostedModel) -> None:
        self.launcher = FakeLauncher()
        self.metrics = Metrics()
        self.models = HostedModels(self.launcher, options, self.metrics)
        self.models.adopt(models)

    async def complete(self, model: HostedModel) -> str:
        """Return the text of a completion."""
        request = chat_service_pb2.CreateChatCompletionRequest()
        response = await self.models.upstream(model).call(CREATE_CHAT_COMPLETION, request, OPTIONS)
        return "".join(part.text for part in response.completion.choices[0].message.content)

    def begin(self, model: HostedModel) -> "asyncio.Task[str]":
        return asyncio.ensure_future(self.complete(model))

    def state(self, model: HostedModel) -> State:
        return self.models.status(model).state

    async def until_state(self, model: HostedModel, state: State) -> None:
        await until(lambda: self.state(model) is state)

    async def until_started(self, *names: str) -> None:
        await until(lambda: self.launcher.started == list(names))


@asynccontextmanager
async def hosting(options: HostingOptions = NEVER, *models: HostedModel) -> AsyncIterator[Rig]:
    rig = Rig(options, *(models or (A, B, C)))
    try:
        yield rig
    finally:
        await rig.models.close()
        assert rig.launcher.running == []


async def test_first_request_loads_the_model_and_later_ones_use_it() -> None:
    async with hosting() as rig:
        assert rig.state(A) is State.UNLOADED
        assert await rig.complete(A) == "Hello world"
        assert await rig.complete(A) == "Hello world"
        assert rig.launcher.started == ["a"]
        assert rig.state(A) is State.LOADED
        await rig.complete(B)
        assert rig.launcher.running == ["a", "b"]


async def test_concurrent_first_requests_start_one_process() -> None:
    async with hosting() as rig:
        rig.launcher.is_held = True
        requests = [rig.begin(A) for _ in range(5)]
        await rig.until_started("a")
        await rig.launcher.processes[0].service.set_ready(True)
        assert await asyncio.gather(*requests) == ["Hello world"] * 5
        assert rig.launcher.started == ["a"]


async def test_model_over_the_budget_replaces_the_least_recently_used() -> None:
    async with hosting(replace(NEVER, budget_bytes=2)) as rig:
        await rig.complete(A)
        await rig.complete(B)
        await rig.complete(A)
        await rig.complete(C)
        assert rig.launcher.running == ["a", "c"]
        assert rig.launcher.processes[1].signals == ["terminate"]


async def test_model_with_running_requests_is_drained_before_it_is_unloaded() -> None:
    async with hosting(SMALL) as rig:
        rig.launcher.script = list(HOLDING)
        running = rig.begin(A)
        await rig.until_started("a")
        first = rig.launcher.processes[0]
        await first.service.called()
        other = rig.begin(B)
        again = rig.begin(A)  # it waits: the model is about to be unloaded
        await asyncio.sleep(0)
        assert first.signals == []
        rig.launcher.script = []
        first.service.release()
        assert await running == "Hello"
        assert await other == "Hello world"
        assert await again == "Hello world"
        assert rig.launcher.started == ["a", "b", "a"]
        assert len(first.service.calls) == 1


async def test_draining_ends_if_the_waiting_client_leaves() -> None:
    async with hosting(SMALL) as rig:
        rig.launcher.script = list(HOLDING)
        running = rig.begin(A)
        await rig.until_started("a")
        service = rig.launcher.processes[0].service
        await service.called()
        leaving = rig.begin(B)
        again = rig.begin(A)
        await asyncio.sleep(0)
        leaving.cancel()
        await service.called(2)
        service.release()
        assert [await running, await again] == ["Hello", "Hello"]
        assert rig.launcher.started == ["a"]


async def test_idle_model_is_unloaded_after_its_own_timeout() -> None:
    async with hosting(NEVER, replace(A, idle_timeout_s=0.01), B) as rig:
        model = replace(A, idle_timeout_s=0.01)
        await rig.complete(B)
        await rig.complete(model)
        await rig.until_state(model, State.UNLOADED)
        assert rig.launcher.running == ["b"]
        assert rig.launcher.processes[1].signals == ["terminate"]
        await rig.complete(model)
        assert rig.launcher.started == ["b", "a", "a"]


async def test_request_that_waits_is_dropped_if_its_client_leaves() -> None:
    async with hosting() as rig:
        rig.launcher.is_held = True
        leaving = rig.begin(A)
        await rig.until_started("a")
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await rig.launcher.processes[0].service.set_ready(True)
        await rig.until_state(A, State.LOADED)
        assert rig.launcher.processes[0].service.calls == []


async def test_failed_start_fails_all_waiting_requests_with_the_reason() -> None:
    async with hosting() as rig:
        rig.launcher.is_held = True
        requests = [rig.begin(A), rig.begin(A)]
        await rig.until_started("a")
        rig.launcher.processes[0].end("There is no model 'models/a'.")
        for failed in await asyncio.gather(*requests, return_exceptions=True):
            assert isinstance(failed, ApiError)
            assert failed.status == 503
            error = failed.body.error
            assert error.code == "model_load_failed"
            assert error.message.endswith("could not be loaded: There is no model 'models/a'.")
            assert failed.headers == {"retry-after": "1"}
        assert rig.models.status(A).failure == "There is no model 'models/a'."
        rig.launcher.is_held = False
        assert await rig.complete(B) == "Hello world"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(12, "Cannot allocate memory"), "Cannot allocate memory"),
        (ValueError("embedded null byte"), "embedded null byte"),
    ],
)
async def test_failed_model_is_not_started_again_at_once(
    error: OSError | ValueError, reason: str
) -> None:
    async with hosting() as rig:
        rig.launcher.error = error
        for _ in range(3):
            with pytest.raises(ApiError, match=reason):
                await rig.complete(A)
        starts = rig.metrics.hosted_starts.labels("a", "failed")
        assert starts._value.get() == 1


async def test_process_that_dies_is_started_by_the_next_request() -> None:
    async with hosting() as rig:
        await rig.complete(A)
        rig.launcher.processes[0].end("The process was terminated by SIGKILL.")
        await rig.until_state(A, State.UNLOADED)
        assert rig.models.status(A).failure == ""
        assert await rig.complete(A) == "Hello world"
        assert rig.launcher.started == ["a", "a"]


async def test_running_request_fails_if_the_process_dies_and_others_go_on() -> None:
    async with hosting() as rig:
        rig.launcher.script = list(HOLDING)
        running, other = rig.begin(A), rig.begin(B)
        await until(lambda: len(rig.launcher.processes) == 2)
        for process in rig.launcher.processes:
            await process.service.called()
        by_name = {process.name: process for process in rig.launcher.processes}
        by_name["a"].end("The process was terminated by SIGKILL.")
        with pytest.raises(grpc.aio.AioRpcError):
            await running
        by_name["b"].service.release()
        assert await other == "Hello"


async def test_start_that_takes_too_long_is_ended() -> None:
    async with hosting(replace(NEVER, load_timeout_s=0.2)) as rig:
        rig.launcher.is_held = True
        with pytest.raises(ApiError, match=r"within 0.2 s") as failed:
            await rig.complete(A)
        assert failed.value.status in {503, 504}
        await rig.until_state(A, State.UNLOADED)
        assert rig.launcher.running == []


async def test_queue_of_a_model_is_bounded() -> None:
    async with hosting(replace(NEVER, max_waiting=2)) as rig:
        rig.launcher.is_held = True
        requests = [rig.begin(A), rig.begin(A)]
        await rig.until_started("a")
        with pytest.raises(ApiError) as rejected:
            await rig.complete(A)
        assert rejected.value.body.error.code == "server_is_overloaded"
        await rig.launcher.processes[0].service.set_ready(True)
        await asyncio.gather(*requests)


async def test_waiting_stream_reports_progress_before_the_response() -> None:
    async with hosting(replace(NEVER, progress_interval_s=0.01)) as rig:
        rig.launcher.is_held = True
        upstream = rig.models.upstream(A)
        request = chat_service_pb2.StreamChatCompletionRequest()
        stream = upstream.stream(STREAM_CHAT_COMPLETION, request, OPTIONS)
        assert await anext(stream) is None
        assert upstream.progress == "a is loading for 0 s"
        await rig.until_started("a")
        await rig.launcher.processes[0].service.set_ready(True)
        rest = [response async for response in stream if response is not None]
        text = [c.delta.content for response in rest for c in response.chunk.choices]
        assert "".join(text) == "Hello world"


async def test_closing_a_waiting_stream_removes_its_request() -> None:
    async with hosting(replace(SMALL, progress_interval_s=0.01)) as rig:
        rig.launcher.is_held = True
        waiting = rig.begin(A)
        await rig.until_started("a")
        request = chat_service_pb2.StreamChatCompletionRequest()
        stream = rig.models.upstream(B).stream(STREAM_CHAT_COMPLETION, request, OPTIONS)
        assert await anext(stream) is None
        await stream.aclose()
        await rig.launcher.processes[0].service.set_ready(True)
        assert await waiting == "Hello world"
        assert rig.launcher.started == ["a"]


async def test_removed_model_is_unloaded_after_its_requests() -> None:
    async with hosting() as rig:
        rig.launcher.script = list(HOLDING)
        running = rig.begin(A)
        await rig.until_started("a")
        process = rig.launcher.processes[0]
        await process.service.called()
        rig.models.adopt([B])
        assert process.signals == []
        process.service.release()
        assert await running == "Hello"
        await rig.until_state(A, State.UNLOADED)
        assert rig.launcher.running == []
        with pytest.raises(ApiError, match="not served any more"):
            await rig.complete(A)


async def test_call_that_is_no_request_fails_with_the_process_and_is_not_cancelled() -> None:
    async with hosting() as rig:
        await rig.complete(A)
        [process] = rig.launcher.processes
        process.service.script = list(HOLDING)
        upstream = rig.models.loaded(A)
        assert upstream is not None
        request = chat_service_pb2.CreateChatCompletionRequest()
        call = asyncio.ensure_future(upstream.call(CREATE_CHAT_COMPLETION, request, OPTIONS))
        await process.service.called(2)
        rig.models.adopt([B])
        with pytest.raises(grpc.aio.AioRpcError):
            await call


async def test_changed_model_gets_a_new_process() -> None:
    changed = replace(A, arguments=("--dtype", "float32"))
    async with hosting() as rig:
        await rig.complete(A)
        rig.models.adopt([changed, B])
        await rig.complete(changed)
        await until(lambda: len(rig.launcher.running) == 1)
        assert rig.launcher.started == ["a", "a"]


async def test_changed_model_with_the_same_port_waits_for_its_former_process() -> None:
    model = replace(A, port=50_051)
    changed = replace(model, arguments=("--dtype", "float32"))
    async with hosting(NEVER, model, B) as rig:
        rig.launcher.script = list(HOLDING)
        running = rig.begin(model)
        await rig.until_started("a")
        former = rig.launcher.processes[0]
        await former.service.called()
        rig.models.adopt([changed, B])
        rig.launcher.script = []
        waiting = rig.begin(changed)
        await rig.until_state(changed, State.LOADING)
        await rig.complete(B)
        assert rig.launcher.started == ["a", "b"]
        former.service.release()
        assert await running == "Hello"
        assert await waiting == "Hello world"
        assert rig.launcher.started == ["a", "b", "a"]
        assert len(former.service.calls) == 1


async def test_measured_memory_replaces_the_estimate() -> None:
    a, b = (HostedModel(name, "nowhere") for name in "ab")
    async with hosting(replace(NEVER, budget_bytes=2**31), a, b) as rig:
        rig.launcher.resident_bytes = {"a": 2**31}
        await rig.complete(a)
        await rig.complete(b)
        assert rig.launcher.running == ["b"]


async def test_process_that_ignores_sigterm_is_killed() -> None:
    async with hosting(replace(SMALL, stop_timeout_s=0.01)) as rig:
        await rig.complete(A)
        rig.launcher.processes[0].ignores_sigterm = True
        await rig.complete(B)
        assert rig.launcher.processes[0].signals == ["terminate", "kill"]


async def test_close_ends_starting_processes_and_fails_their_requests() -> None:
    async with hosting() as rig:
        await rig.complete(B)
        rig.launcher.is_held = True
        waiting = rig.begin(A)
        await rig.until_started("b", "a")
        await rig.models.close()
        with pytest.raises(ApiError, match="shutting down"):
            await waiting
        with pytest.raises(ApiError):
            await rig.complete(B)
        assert rig.launcher.running == []


async def test_metrics_have_the_states_of_all_models() -> None:
    async with hosting(NEVER, replace(A, memory_bytes=None), B) as rig:
        rig.launcher.resident_bytes = {"a": 5}
        await rig.complete(replace(A, memory_bytes=None))
        page = rig.metrics.render().decode()
        for line in (
            'hosted_model_loaded{model="a"} 1.0',
            'hosted_model_loaded{model="b"} 0.0',
            'hosted_model_memory_bytes{model="a"} 5.0',
            'hosted_model_waiting_requests{model="b"} 0.0',
            'hosted_model_starts_total{model="a",outcome="ok"} 1.0',
        ):
            assert f"chatrpc_gateway_{line}" in page


async def test_description_is_kept_after_the_unload() -> None:
    async with hosting(SMALL) as rig:
        await rig.complete(A)
        await until(lambda: rig.models.description(A) is not None)
        await rig.complete(B)
        assert rig.models.loaded(A) is None
        description = rig.models.description(A)
        assert description is not None
        assert (description.id, description.max_model_len) == ("a", 2048)


def test_options_have_no_budget_by_default() -> None:
    assert HostingOptions().budget_bytes == math.inf
