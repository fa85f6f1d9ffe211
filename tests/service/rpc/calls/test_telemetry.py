"""Metrics of real calls: their names, labels and values."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from chatrpc.v1 import chat_pb2, chat_service_pb2, chat_service_pb2_grpc, model_service_pb2
from chatrpc.v1.model_service_pb2_grpc import ModelServiceStub
from service.domain.engine import EngineStats, FinishReason, TokenOutput
from service.domain.model import LocalModel
from service.domain.sampling import SamplingParams
from service.errors import QueueFull
from service.generation.local_backend import locally_served
from service.metrics import Metrics
from service.rpc.calls.rpcs import SERVICE_NAMES
from service.rpc.server import Server
from service.rpc.serving.lifecycle import Lifecycle
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizer import EOS, ByteTokenizer
from tests.fakes.wait import until
from tests.support.grpc_server import CARD, params
from tests.support.rpc_errors import rpc_error

CHAT = {"grpc_service": "chatrpc.v1.ChatService"}
PROMPT = "<user>hi<assistant>"


class Counted:
    """A server, its metrics, and a client of it."""

    def __init__(self, engine: FakeEngine, metrics: Metrics, channel: grpc.aio.Channel) -> None:
        self.engine = engine
        self._metrics = metrics
        self.chat: Any = chat_service_pb2_grpc.ChatServiceStub(channel)
        self.models: Any = ModelServiceStub(channel)

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample. For vLLM's names, its labels are added."""
        model = {"model_name": "fake", "engine": "0"} if name.startswith("vllm:") else {}
        return self._metrics.registry.get_sample_value(name, {**model, **labels})

    async def ended(self, number: int = 1) -> None:
        """Wait until this many calls have been counted, which may be after their responses."""

        def handled() -> float:
            families = self._metrics.registry.collect()
            return sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == "grpc_server_handled_total"
            )

        await until(lambda: handled() >= number)

    def create(self) -> Any:
        request = chat_service_pb2.CreateChatCompletionRequest(params=params())
        return self.chat.CreateChatCompletion(request)

    def stream(self, **fields: Any) -> Any:
        request = chat_service_pb2.StreamChatCompletionRequest(params=params(**fields))
        return self.chat.StreamChatCompletion(request)


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    engine, metrics = FakeEngine(), Metrics()
    engine.answer("abcd")
    lifecycle = Lifecycle(SERVICE_NAMES)
    server = Server(lifecycle, request_timeout_s=60, metrics=metrics)
    port = await server.start("127.0.0.1", 0)
    metrics.name_model("fake")
    await lifecycle.serve(
        locally_served(
            LocalModel(CARD, ByteTokenizer(), engine, SamplingParams(), frozenset({EOS}), 257)
        )
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Counted(engine, metrics, channel)
    await server.stop()


@pytest.mark.parametrize("prefix", ["chatrpc_", "vllm:"])
async def test_tokens_and_times_of_a_stream_are_counted(counted: Counted, prefix: str) -> None:
    assert [response async for response in counted.stream()]
    await counted.ended()
    assert counted.value(f"{prefix}prompt_tokens_total") == len(PROMPT)
    assert counted.value(f"{prefix}generation_tokens_total") == 4
    assert counted.value(f"{prefix}time_to_first_token_seconds_count") == 1
    assert counted.value(f"{prefix}inter_token_latency_seconds_count") == 3
    assert counted.value(f"{prefix}e2e_request_latency_seconds_count") == 1
    assert counted.value(f"{prefix}request_success_total", finished_reason="length") == 1


async def test_tokens_and_times_of_a_unary_call_are_counted(counted: Counted) -> None:
    await counted.create()
    await counted.ended()
    assert counted.value("vllm:generation_tokens_total") == 4
    assert counted.value("vllm:prompt_tokens_total") == len(PROMPT)
    assert counted.value("vllm:e2e_request_latency_seconds_count") == 1


async def test_each_choice_counts_as_a_success(counted: Counted) -> None:
    sampling = chat_pb2.SamplingParams(n=3)
    assert [response async for response in counted.stream(sampling=sampling)]
    await counted.ended()
    assert counted.value("vllm:request_success_total", finished_reason="length") == 3
    assert counted.value("vllm:generation_tokens_total") == 12


async def test_calls_are_counted_by_their_code(counted: Counted) -> None:
    await counted.create()
    await rpc_error(counted.models.GetModel(model_service_pb2.GetModelRequest(id="x")))
    await counted.ended(2)
    create = {**CHAT, "grpc_method": "CreateChatCompletion"}
    assert counted.value("grpc_server_started_total", **create) == 1
    assert counted.value("grpc_server_handled_total", **create, grpc_code="OK") == 1
    get = {"grpc_service": "chatrpc.v1.ModelService", "grpc_method": "GetModel"}
    assert counted.value("grpc_server_handled_total", **get, grpc_code="NOT_FOUND") == 1
    assert counted.value("chatrpc_aborted_requests_total") == 0


@pytest.mark.parametrize("num_generated", [0, 3])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_tokens_of_a_cancelled_call_are_counted(
    counted: Counted, is_streamed: bool, num_generated: int
) -> None:
    counted.engine.script = [*[TokenOutput((97,))] * num_generated, asyncio.Event()]
    call = counted.stream() if is_streamed else counted.create()
    await until(lambda: counted.engine.num_waited > 0)
    call.cancel()
    await counted.ended()
    assert counted.value("vllm:prompt_tokens_total") == len(PROMPT)
    assert counted.value("vllm:generation_tokens_total") == num_generated


async def test_rejected_request_counts_no_tokens(counted: Counted) -> None:
    counted.engine.generate_error = QueueFull(1, 1.0)
    await rpc_error(counted.create())
    await counted.ended()
    assert counted.value("vllm:prompt_tokens_total") == 0


async def test_cancelled_call_is_counted_as_aborted(counted: Counted) -> None:
    counted.engine.script = [TokenOutput((97,)), *[TokenOutput((98,))] * 10_000]
    counted.engine.script.append(TokenOutput((99,), FinishReason.LENGTH))
    call = counted.stream()
    await call.read()
    call.cancel()
    await counted.ended()
    assert counted.value("chatrpc_aborted_requests_total") == 1
    assert counted.value("vllm:e2e_request_latency_seconds_count") == 0


def test_metrics_of_the_engine_are_its_current_stats() -> None:
    metrics, stats = Metrics(), [EngineStats()]
    metrics.watch_engine(lambda: stats[0], 256)
    value, model = metrics.registry.get_sample_value, {"model_name": "m", "engine": "0"}
    assert value("chatrpc_kv_cache_usage_ratio") == 0
    assert value("vllm:kv_cache_usage_perc", model) is None  # no model is named yet
    metrics.name_model("m")
    stats[0] = EngineStats(
        max_num_seqs=32,
        num_running=3,
        num_waiting=2,
        num_kv_blocks=10,
        kv_block_size=16,
        num_free_kv_blocks=4,
        num_preemptions=7,
        num_steps=9,
    )
    assert value("vllm:num_requests_running", model) == value("chatrpc_sequences_running") == 3
    assert value("vllm:num_requests_waiting", model) == 2
    assert value("vllm:kv_cache_usage_perc", model) == pytest.approx(0.6)
    assert value("vllm:num_preemptions_total", model) == 7
    assert value("chatrpc_steps_total") == 9  # vLLM has no such metric
    assert value("chatrpc_sequences_running_limit") == 32
    assert value("chatrpc_sequences_waiting_limit") == 256
    assert value("vllm:cache_config_info", {"block_size": "16", "num_gpu_blocks": "10", **model})


def test_metrics_page_is_parsed_by_prometheus() -> None:
    metrics = Metrics()
    metrics.watch_engine(EngineStats, 256)
    metrics.name_model('a "quoted" \\ name')
    families = list(text_string_to_metric_families(generate_latest(metrics.registry).decode()))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    models = {s.labels["model_name"] for f in families for s in f.samples if "vllm:" in s.name}
    assert models == {'a "quoted" \\ name'}
    assert "chatrpc_build_info" in names


PHASES = ("queue_time_seconds", "prefill_time_seconds", "decode_time_seconds")


async def test_parameters_and_times_of_a_generation_are_counted(counted: Counted) -> None:
    sampling = chat_pb2.SamplingParams(n=2, max_completion_tokens=9)
    assert [response async for response in counted.stream(sampling=sampling)]
    await counted.ended()
    assert counted.value("chatrpc_request_prompt_tokens_sum") == len(PROMPT)
    assert counted.value("chatrpc_request_generation_tokens_sum") == 8
    assert counted.value("chatrpc_request_params_n_sum") == 2
    assert counted.value("chatrpc_request_params_max_tokens_sum") == 9
    for name in (*PHASES, "inference_time_seconds", "time_per_output_token_seconds"):
        assert counted.value(f"chatrpc_request_{name}_count") == 1


async def test_times_of_a_cancelled_call_are_not_counted(counted: Counted) -> None:
    counted.engine.script = [TokenOutput((97,)), asyncio.Event()]
    call = counted.stream()
    await call.read()
    call.cancel()
    await counted.ended()
    for name in PHASES:
        assert counted.value(f"chatrpc_request_{name}_count") == 0
