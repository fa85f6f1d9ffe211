"""Each RPC of vLLM's protocol over a real socket, with a scripted engine."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from smg_grpc_proto.generated import common_pb2, vllm_engine_pb2

from service.domain.backend import TextDelta
from service.domain.engine import FinishReason, TokenLogprobs, TokenOutput
from service.errors import EngineDead, QueueFull, StepFailed
from service.rpc.generation_calls import MAX_ENCODED_ON_LOOP
from service.vllm_protocol.encode import GenerateEncoder
from tests.fakes.grammars import RandomEngine, byte_grammars
from tests.fakes.tokenizer import EOS
from tests.fakes.wait import until
from tests.service.vllm_protocol.protocol_server import (
    PROMPT,
    ProtocolRunning,
    generate,
    protocol_served,
)
from tests.support.api_keys import OTHER, SECRET, key, write
from tests.support.grpc_server import served
from tests.support.rpc_errors import rpc_error

SERVICE = "vllm.grpc.engine.VllmEngine"
MINE = (("authorization", f"Bearer {SECRET}"),)
THEIRS = (("authorization", f"Bearer {OTHER}"),)


async def test_stream_has_the_tokens_of_the_engine(protocol: ProtocolRunning) -> None:
    protocol.running.engine.script = [
        TokenOutput((1,), num_cached_tokens=2),
        TokenOutput((2, 3), num_cached_tokens=2),
        TokenOutput((EOS,), FinishReason.STOP, num_cached_tokens=2),
    ]
    *chunks, complete = await protocol.generate(stream=True, max_tokens=8)
    assert [list(each.chunk.token_ids) for each in chunks] == [[1], [2, 3], [EOS]]
    assert all(each.chunk.prompt_tokens == len(PROMPT) for each in chunks)
    assert complete.complete.output_ids == [1, 2, 3, EOS]
    assert complete.complete.finish_reason == "stop"
    assert complete.complete.cached_tokens == 2
    assert complete.complete.WhichOneof("matched_stop") is None  # of the model, not the request
    [received] = protocol.running.engine.requests
    assert received.prompt_token_ids == PROMPT
    assert received.stop_token_ids == {EOS}
    assert received.sampling.max_tokens == 8


async def test_response_without_streaming_is_one_message(protocol: ProtocolRunning) -> None:
    complete = await protocol.complete(max_tokens=8)
    assert (bytes(complete.output_ids), complete.finish_reason) == (b"ok", "length")
    assert (complete.prompt_tokens, complete.completion_tokens) == (2, 2)


async def test_output_may_have_no_limit(protocol: ProtocolRunning) -> None:
    await protocol.complete()
    assert protocol.running.engine.requests[0].sampling.max_tokens is None


async def test_each_choice_has_its_own_complete(protocol: ProtocolRunning) -> None:
    protocol.running.engine.script = [
        TokenOutput((7,), FinishReason.STOP, index=1),
        TokenOutput((8,)),
        TokenOutput((9,), FinishReason.LENGTH),
    ]
    responses = [each.complete for each in await protocol.generate(n=2, stop_token_ids=[7])]
    assert [(each.index, list(each.output_ids)) for each in responses] == [(0, [8, 9]), (1, [7])]
    assert responses[1].matched_token_id == 7
    streamed = await protocol.generate(n=2, stop_token_ids=[7], stream=True)
    assert sorted(each.complete.index for each in streamed if each.HasField("complete")) == [0, 1]


async def test_stop_string_ends_the_output_after_its_tokens(protocol: ProtocolRunning) -> None:
    protocol.running.engine.answer("one STOP two")
    complete = await protocol.complete(stop=["STOP"])
    assert (bytes(complete.output_ids), complete.matched_stop_str) == (b"one STOP", "STOP")
    assert complete.finish_reason == "stop"
    assert protocol.running.engine.num_running == 0


async def test_log_probabilities_of_prompt_and_output_are_returned(
    protocol: ProtocolRunning,
) -> None:
    logprobs = (TokenLogprobs(9, -0.5, ((9, -0.5), (8, -1.0))),)
    protocol.running.engine.script = [TokenOutput((9,), FinishReason.LENGTH, logprobs=logprobs)]
    complete = await protocol.complete(logprobs=2, prompt_logprobs=0)
    assert complete.output_logprobs.token_logprobs == [-0.5]
    assert complete.output_logprobs.top_logprobs[0].token_ids == [9, 8]
    assert complete.input_logprobs.token_ids == list(PROMPT)
    values = complete.input_logprobs.token_logprobs
    assert [each.HasField("value") for each in values] == [False, True]


async def test_text_prompt_is_tokenized(protocol: ProtocolRunning) -> None:
    complete = await protocol.complete(text="hi")
    assert protocol.running.engine.requests[0].prompt_token_ids == (*b"hi", EOS)
    assert complete.prompt_tokens == 3


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": "[ab]{3}"}, b"aabb"),
        ({"json_schema": '{"enum": ["x"]}'}, b'"x"'),
        ({"grammar": 'root ::= "yes" | "no"'}, b"yesno"),
        ({"choice": vllm_engine_pb2.ChoiceConstraint(choices=["red"])}, b"red"),
        ({"json_object": True}, b""),
    ],
)
async def test_constraint_reaches_the_engine(constraint: Any, pattern: bytes) -> None:
    engine = RandomEngine(seed=7)
    async with protocol_served(engine=engine, grammars=byte_grammars()) as protocol:
        complete = await protocol.complete(**constraint)
    *output, end = complete.output_ids
    assert end == EOS
    assert complete.finish_reason == "stop"
    if pattern:
        assert set(bytes(output)) <= set(pattern)
    else:
        assert isinstance(json.loads(bytes(output)), dict)


@pytest.mark.parametrize(
    ("constraint", "field"),
    [
        ({"regex": "(("}, "sampling_params.regex"),
        ({"json_schema": "{"}, "sampling_params.json_schema"),
        ({"json_schema": '{"uniqueItems": true}'}, "sampling_params.json_schema.uniqueItems"),
        ({"choice": vllm_engine_pb2.ChoiceConstraint()}, "sampling_params.choice.choices"),
        ({"structural_tag": "{}"}, "sampling_params.structural_tag"),
    ],
)
async def test_constraint_that_cannot_be_enforced_is_rejected(constraint: Any, field: str) -> None:
    async with protocol_served(grammars=byte_grammars()) as protocol:
        error = await rpc_error(protocol.stub.Generate(generate(**constraint)))
        assert (error.code, error.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_error_names_the_field_of_the_protocol(protocol: ProtocolRunning) -> None:
    error = await rpc_error(protocol.stub.Generate(generate(temperature=3)))
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    assert error.fields == ["sampling_params.temperature"]
    assert error.message.startswith("sampling_params.temperature must be between 0 and 2")
    long = await rpc_error(protocol.stub.Generate(generate(tuple([1] * 1000))))
    assert (long.reason, long.fields) == ("CONTEXT_LENGTH_EXCEEDED", ["tokenized.input_ids"])
    engine = protocol.running.engine
    assert not engine.requests
    assert engine.num_reservations == len(engine.reserved) + 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (QueueFull(8, 1.0), grpc.StatusCode.UNAVAILABLE),
        (EngineDead(), grpc.StatusCode.INTERNAL),
        (StepFailed(), grpc.StatusCode.INTERNAL),
    ],
)
async def test_error_of_the_engine_is_a_status(
    protocol: ProtocolRunning, error: Any, code: grpc.StatusCode
) -> None:
    protocol.running.engine.script = [TokenOutput((1,)), error]
    seen: list[Any] = []
    assert (await rpc_error(protocol.stub.Generate(generate(stream=True)), seen)).code == code
    assert len(seen) == 1


async def test_cancelled_call_frees_the_engine(protocol: ProtocolRunning) -> None:
    protocol.running.engine.script = [TokenOutput((1,)), asyncio.Event()]
    call = protocol.stub.Generate(generate(stream=True))
    await call.read()
    call.cancel()
    await until(lambda: protocol.running.engine.num_running == 0)


async def test_deadline_frees_the_engine(protocol: ProtocolRunning) -> None:
    protocol.running.engine.script = [TokenOutput((1,)), asyncio.Event()]
    call = protocol.stub.Generate(generate(stream=True), timeout=0.2)
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: protocol.running.engine.num_running == 0)


async def test_longest_duration_of_a_request_applies() -> None:
    async with protocol_served(request_timeout_s=0.05) as protocol:
        protocol.running.engine.script = [TokenOutput((1,)), asyncio.Event()]
        error = await rpc_error(protocol.stub.Generate(generate(stream=True)))
    assert error.code == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("stream", [True, False])
async def test_abort_frees_the_engine_and_ends_the_response(
    protocol: ProtocolRunning, *, stream: bool
) -> None:
    engine = protocol.running.engine
    engine.script = [TokenOutput((1,)), asyncio.Event()]
    call = protocol.stub.Generate(generate(request_id="r", stream=stream))
    await until(lambda: engine.num_waited == 1)
    await protocol.stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["unknown", "r"]))
    *_, last = [response async for response in call]
    assert last.complete.finish_reason == "abort"
    assert last.complete.output_ids == [1]
    assert await call.code() == grpc.StatusCode.OK
    await until(lambda: engine.num_running == 0)


async def test_abort_before_the_first_token_ends_the_response(protocol: ProtocolRunning) -> None:
    engine = protocol.running.engine
    engine.script = [asyncio.Event()]
    call = protocol.stub.Generate(generate(request_id="r", stream=True, n=2))
    await until(lambda: engine.num_waited == 1)
    await protocol.stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r"]))
    completes = [response.complete async for response in call]
    assert [each.index for each in completes] == [0, 1]
    assert {each.finish_reason for each in completes} == {"abort"}
    assert {each.prompt_tokens for each in completes} == {len(PROMPT)}
    await until(lambda: engine.num_running == 0 and not engine.reserved)


async def test_abort_frees_the_engine_of_a_client_that_does_not_read(
    protocol: ProtocolRunning,
) -> None:
    engine = protocol.running.engine
    engine.script = [TokenOutput((i % 256,) * 1000) for i in range(400)]
    call = protocol.stub.Generate(generate(request_id="r", stream=True))
    await until(lambda: engine.num_running == 1)
    abort = vllm_engine_pb2.AbortRequest(request_ids=["r"])

    async def is_free() -> bool:  # the first may come before the request is registered
        await protocol.stub.Abort(abort)
        return engine.num_running == 0

    await until(is_free)
    *chunks, last = [response async for response in call]
    assert len(chunks) < 400
    assert last.complete.finish_reason == "abort"
    assert await call.code() == grpc.StatusCode.OK


async def test_abort_while_a_thread_encodes_loses_no_message(
    protocol: ProtocolRunning, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, started, go_on = GenerateEncoder.push, threading.Event(), threading.Event()

    def slow_push(encoder: GenerateEncoder, delta: TextDelta) -> object:
        if delta.num_logprobs:
            started.set()
            go_on.wait(timeout=10)  # ends a failed test
        return encode(encoder, delta)

    monkeypatch.setattr(GenerateEncoder, "push", slow_push)
    tokens = (1,) * MAX_ENCODED_ON_LOOP
    protocol.running.engine.script = [TokenOutput(tokens, FinishReason.LENGTH)]
    call = protocol.stub.Generate(generate(request_id="r", stream=True, logprobs=0))
    await until(started.is_set)
    await protocol.stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["r"]))
    go_on.set()
    chunk, last = [response async for response in call]
    assert tuple(chunk.chunk.token_ids) == tokens
    assert tuple(last.complete.output_ids) == tokens
    assert last.complete.finish_reason == "length"


async def test_second_abort_of_a_request_has_no_effect(protocol: ProtocolRunning) -> None:
    engine = protocol.running.engine
    engine.script = [TokenOutput((1,)), asyncio.Event()]
    call = protocol.stub.Generate(generate(request_id="r", stream=True))
    await until(lambda: engine.num_waited == 1)
    abort = vllm_engine_pb2.AbortRequest(request_ids=["r", "r"])
    await protocol.stub.Abort(abort)
    await protocol.stub.Abort(abort)
    *_, last = [response async for response in call]
    assert last.complete.finish_reason == "abort"


async def test_all_requests_of_an_id_are_aborted_and_others_are_not(
    protocol: ProtocolRunning,
) -> None:
    engine = protocol.running.engine
    engine.script = [
        TokenOutput((1,)),
        go_on := asyncio.Event(),
        TokenOutput((2,), FinishReason.STOP),
    ]
    calls = [
        protocol.stub.Generate(generate(request_id=request_id))
        for request_id in ("same", "same", "other", "")
    ]
    await until(lambda: engine.num_waited == 4)
    await protocol.stub.Abort(vllm_engine_pb2.AbortRequest(request_ids=["same", ""]))
    await until(lambda: engine.num_running == 2)
    go_on.set()
    reasons = [[response.complete.finish_reason async for response in call] for call in calls]
    assert reasons == [["abort"], ["abort"], ["stop"], ["stop"]]


async def test_only_the_callers_own_requests_are_aborted(tmp_path: Path) -> None:
    keys = write(tmp_path / "keys.toml", key() + key(OTHER, name="two"))
    async with protocol_served(keys=keys) as protocol:
        engine = protocol.running.engine
        engine.script = [TokenOutput((1,)), asyncio.Event()]
        call = protocol.stub.Generate(generate(request_id="r"), metadata=MINE)
        await until(lambda: engine.num_waited == 1)
        abort = vllm_engine_pb2.AbortRequest(request_ids=["r"])
        await protocol.stub.Abort(abort, metadata=THEIRS)
        assert engine.num_running == 1
        await protocol.stub.Abort(abort, metadata=MINE)
        [response] = [response async for response in call]
    assert response.complete.finish_reason == "abort"


@pytest.mark.parametrize(
    ("method", "request_message"),
    [
        ("Generate", generate()),
        ("Abort", vllm_engine_pb2.AbortRequest()),
        ("HealthCheck", vllm_engine_pb2.HealthCheckRequest()),
        ("GetModelInfo", vllm_engine_pb2.GetModelInfoRequest()),
        ("GetServerInfo", vllm_engine_pb2.GetServerInfoRequest()),
        ("GetLoads", vllm_engine_pb2.GetLoadsRequest()),
        ("GetTokenizer", common_pb2.GetTokenizerRequest()),
    ],
)
async def test_every_rpc_needs_a_key_that_permits_the_model(
    tmp_path: Path, method: str, request_message: Any
) -> None:
    limited = key(OTHER, 'models = ["another"]', name="two")
    keys = write(tmp_path / "keys.toml", key() + limited)
    (tmp_path / "tokenizer.json").write_text("{}")
    async with protocol_served(keys=keys, path=tmp_path) as protocol:
        call = getattr(protocol.stub, method)
        error = await rpc_error(call(request_message))
        assert error.code == grpc.StatusCode.UNAUTHENTICATED
        if method not in ("Abort", "HealthCheck"):
            error = await rpc_error(call(request_message, metadata=THEIRS))
            assert error.reason == "MODEL_FORBIDDEN"
        permitted = call(request_message, metadata=MINE)
        if method in ("Generate", "GetTokenizer"):
            assert [response async for response in permitted]
        assert await permitted.code() == grpc.StatusCode.OK


async def test_limits_of_a_key_apply(tmp_path: Path) -> None:
    lines = ("tokens_per_minute = 100", "default_max_tokens = 20")
    keys = write(tmp_path / "keys.toml", key(SECRET, *lines))
    async with protocol_served(keys=keys) as protocol:
        call = protocol.stub.Generate(generate(), metadata=MINE)
        assert [response async for response in call]
        assert protocol.running.engine.requests[0].sampling.max_tokens == 20
        error = await rpc_error(protocol.stub.Generate(generate(max_tokens=3000), metadata=MINE))
    assert (error.reason, error.fields) == ("EXCEEDS_LIMIT", ["sampling_params.max_tokens"])


async def test_health_follows_the_state_of_the_service() -> None:
    async with protocol_served() as protocol:
        request = vllm_engine_pb2.HealthCheckRequest()
        assert (await protocol.stub.HealthCheck(request)).healthy
        draining = asyncio.create_task(protocol.running.lifecycle.drain(0, 60))
        await until(lambda: not protocol.running.lifecycle.is_ready)
        assert not (await protocol.stub.HealthCheck(request)).healthy
        await draining


async def test_drain_finishes_running_requests_and_rejects_new_ones() -> None:
    async with protocol_served() as protocol:
        engine = protocol.running.engine
        go_on = asyncio.Event()
        engine.script = [TokenOutput((1,)), go_on, TokenOutput((2,), FinishReason.LENGTH)]
        call = protocol.stub.Generate(generate(stream=True))
        await until(lambda: engine.num_waited == 1)
        draining = asyncio.create_task(protocol.running.lifecycle.drain(0, 60))
        await until(lambda: protocol.running.lifecycle.state.value == "draining")
        error = await rpc_error(protocol.stub.Generate(generate()))
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        go_on.set()
        *_, last = [response async for response in call]
        assert last.complete.finish_reason == "length"
        await draining


async def test_standard_health_service_lists_the_protocol(protocol: ProtocolRunning) -> None:
    check = health_pb2.HealthCheckRequest(service=SERVICE)
    response = await protocol.running.health.Check(check)
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_methods_that_are_not_served_are_unimplemented(protocol: ProtocolRunning) -> None:
    for call in (
        protocol.stub.Embed(vllm_engine_pb2.EmbedRequest()),
        protocol.stub.FlushCache(common_pb2.FlushCacheRequest()),
        protocol.stub.StartProfile(common_pb2.StartProfileRequest()),
        protocol.stub.StopProfile(common_pb2.StopProfileRequest()),
        protocol.stub.SubscribeKvEvents(common_pb2.SubscribeKvEventsRequest()),
    ):
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_loads_are_those_of_the_engine(protocol: ProtocolRunning) -> None:
    engine = protocol.running.engine
    engine.script = [TokenOutput((1,)), asyncio.Event()]
    call = protocol.stub.Generate(generate(request_id="r"))
    await until(lambda: engine.num_waited == 1)
    request = vllm_engine_pb2.GetLoadsRequest(include=["core", "queues"])
    response = await protocol.stub.GetLoads(request)
    [load] = response.loads
    assert (load.num_running_reqs, load.num_total_reqs, response.dp_rank_count) == (1, 1, 1)
    info = await protocol.stub.GetServerInfo(vllm_engine_pb2.GetServerInfoRequest())
    assert (info.active_requests, info.data_parallel_size) == (1, 1)
    error = await rpc_error(protocol.stub.GetLoads(vllm_engine_pb2.GetLoadsRequest(dp_rank=1)))
    assert error.fields == ["dp_rank"]
    call.cancel()


async def test_tokenizer_without_files_is_unimplemented(protocol: ProtocolRunning) -> None:
    error = await rpc_error(protocol.stub.GetTokenizer(common_pb2.GetTokenizerRequest()))
    assert error.code == grpc.StatusCode.UNIMPLEMENTED


async def test_server_without_the_extension_does_not_have_the_service() -> None:
    async with served() as running:
        check = health_pb2.HealthCheckRequest(service=SERVICE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.health.Check(check)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        method: Any = running.channel.unary_unary(f"/{SERVICE}/HealthCheck")
        call = method(b"")
        assert await call.code() == grpc.StatusCode.UNIMPLEMENTED
